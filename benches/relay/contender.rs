//! The programs that are compared: how each is set up, started and ended.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::TcpListener;
use tokio::time::sleep;

/// In the order of the table.
pub(crate) const NAMES: [&str; 4] = ["hypermin", "nginx", "haproxy", "tailherd"];

/// How long a program has to end by itself.
const PARTING: Duration = Duration::from_secs(3);

/// The engine, and a folder for what the programs write.
pub(crate) struct Stage {
    folder: tempfile::TempDir,
    engine: Running,
}

/// A program that runs. Dropped, it is ended.
pub(crate) struct Running {
    child: Child,
    addr: SocketAddr,
    log: PathBuf,
}

impl Stage {
    pub(crate) async fn new() -> Result<Stage> {
        let folder = tempfile::tempdir()?;
        let addr = free_port().await?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--role", "engine", &addr.port().to_string()]);
        let engine = spawn(command, addr, folder.path().join("engine.log"))?;
        for _ in 0..1000 {
            if crate::load::once(addr).await.is_ok() {
                return Ok(Stage { folder, engine });
            }
            sleep(Duration::from_millis(5)).await;
        }
        bail!("the stand-in engine did not start: {}", engine.said())
    }

    pub(crate) fn engine(&self) -> SocketAddr {
        self.engine.addr
    }

    pub(crate) fn engine_pid(&self) -> u32 {
        self.engine.pid()
    }

    /// Why a contender cannot be measured here.
    pub(crate) fn missing(&self, name: &str) -> Option<String> {
        match name {
            "nginx" | "haproxy" => find(name)
                .is_none()
                .then(|| format!("no `{name}` in PATH or /usr/sbin (apt install {name})")),
            "tailherd" => {
                let binary = tailherd();
                (!binary.is_file()).then(|| format!("{} is no file", binary.display()))
            }
            _ => None,
        }
    }

    /// Starts a contender in a folder of its own, new each time.
    pub(crate) async fn start(&self, name: &str) -> Result<Running> {
        let addr = free_port().await?;
        let folder = tempfile::Builder::new().prefix(name).tempdir_in(self.folder.path())?.keep();
        let upstream = self.engine.addr;
        let command = match name {
            "hypermin" => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["--role", "hypermin"]);
                command.args([addr.port().to_string(), upstream.to_string()]);
                command
            }
            "nginx" => {
                let config = folder.join("nginx.conf");
                fs::write(&config, nginx(&folder, addr, upstream))?;
                let mut command = Command::new(find("nginx").context("no nginx")?);
                command.arg("-p").arg(&folder).arg("-c").arg(config);
                command.arg("-e").arg(folder.join("error.log"));
                command
            }
            "haproxy" => {
                let config = folder.join("haproxy.cfg");
                fs::write(&config, haproxy(addr, upstream))?;
                let mut command = Command::new(find("haproxy").context("no haproxy")?);
                command.arg("-db").arg("-f").arg(config);
                command
            }
            "tailherd" => {
                let config = folder.join("config.json5");
                let admin = free_port().await?;
                fs::write(&config, tailherd_config(addr, admin, upstream))?;
                let mut command = Command::new(tailherd());
                command.arg("serve").arg("--config").arg(config);
                command.env("TAILHERD_STATE", folder.join("state"));
                for name in ["TAILHERD_LISTEN", "TAILHERD_LOCAL", "TAILHERD_LOG"] {
                    command.env_remove(name);
                }
                command.env_remove("OLLAMA_BASE_URL").env_remove("OLLAMA_NUM_PARALLEL");
                command
            }
            _ => bail!("no contender {name}"),
        };
        spawn(command, addr, folder.join("said.log"))
    }
}

impl Running {
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// The end of what it wrote.
    pub(crate) fn said(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().rev().take(3).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join(" / ")
    }

    /// Asks it to end (so that it ends what it started), and makes it if it does not.
    pub(crate) async fn end(mut self) {
        self.terminate();
        for _ in 0..PARTING.as_millis() / 10 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn terminate(&mut self) {
        // While it was not waited for, its number is nobody else's.
        if let Ok(None) = self.child.try_wait()
            && let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
        {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.terminate();
    }
}

fn spawn(mut command: Command, addr: SocketAddr, log: PathBuf) -> Result<Running> {
    let said = File::create(&log)?;
    command.stdin(Stdio::piped()).stdout(said.try_clone()?).stderr(said);
    let child = command.spawn().with_context(|| format!("{command:?}"))?;
    Ok(Running { child, addr, log })
}

async fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?)
}

fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

fn tailherd() -> PathBuf {
    std::env::var_os("TAILHERD_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_tailherd")), PathBuf::from)
}

/// Nothing is buffered, connections are kept, two workers as everybody has.
fn nginx(folder: &Path, addr: SocketAddr, upstream: SocketAddr) -> String {
    let folder = folder.display();
    format!(
        "daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/error.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  keepalive_requests 1000000;
  upstream engine {{ server {upstream}; keepalive 512; keepalive_requests 1000000; }}
  server {{
    listen {addr};
    location / {{
      proxy_pass http://engine;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_buffering off;
      proxy_request_buffering off;
    }}
  }}
}}
"
    )
}

fn haproxy(addr: SocketAddr, upstream: SocketAddr) -> String {
    format!(
        "global
  maxconn 4096
  nbthread 2
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  http-reuse always
  option http-no-delay
  option abortonclose
frontend apps
  bind {addr}
  default_backend engine
backend engine
  server engine {upstream} check inter 1s
"
    )
}

/// As it comes, but for addresses, and for slots: the stand-in engine runs as many as are asked.
fn tailherd_config(addr: SocketAddr, admin: SocketAddr, upstream: SocketAddr) -> String {
    format!(
        "{{
  listen: [\"{addr}\"],
  local: [{{ baseUrl: \"http://{upstream}\", slots: 1024 }}],
  tailnet: {{ enabled: false }},
  lan: {{ enabled: false }},
  models: {{ providers: {{ hosted: {{ baseUrl: \"http://{upstream}/v1\" }} }} }},
  admin: {{ listen: \"{admin}\" }},
  log: {{ level: \"warn\" }},
}}
"
    )
}
