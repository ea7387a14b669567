//! The commands: one file each.
//!
//! In flow arguments, the environment and an output; out flows an exit code: 0 = well,
//! 1 = failed, 2 = wrong usage or a wrong configuration. Whoever reads our output may close it
//! early (`tailherd schema | head`); that is no failure.

mod access;
mod ask;
mod check;
mod demo;
mod doctor;
mod explain;
mod import;
mod lan;
mod models;
mod offline;
mod order;
mod pipe;
mod requests;
mod running;
mod schema;
mod serve;
mod sharing;
mod status;
mod table;
mod tailnet;
mod trust;
mod version;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};

use crate::config::{self, Config, ConfigError, Env, ProcessEnv};

/// All your Ollama models, from all your machines, at the address your apps already use.
#[derive(Debug, Parser)]
#[command(name = "tailherd", version)]
struct Args {
    /// The configuration file.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run (the command when none is named).
    Serve,
    /// Check a configuration and say what is wrong with it.
    Check(check::Args),
    /// Print the JSON Schema of the configuration.
    Schema(schema::Args),
    /// Show the mesh as this node sees it.
    Status(status::Args),
    /// List every model of the mesh and where it is.
    Models(models::Args),
    /// Show where a request for a model would go, and why.
    Explain(explain::Args),
    /// List the last requests: who asked, which node answered, and why that one.
    Requests(requests::Args),
    /// Show who may use this node, and to whom its prompts go.
    Access(access::Args),
    /// Look for what is wrong on this machine, and say what mends it.
    Doctor(doctor::Args),
    /// Decide which nodes prompts may go to, and by which keys they are known.
    Trust(trust::Args),
    /// Decide on which local networks this node may be used.
    Lan(lan::Args),
    /// Print the agents and providers of an openclaw.json as a configuration of tailherd's.
    Import(import::Args),
    /// Ask nothing on the internet: no hosted provider, no cloud model, no pull.
    Offline(offline::Args),
    /// Take no requests of other nodes for a while. Those that run, end.
    Pause(sharing::Pause),
    /// Take requests of other nodes again, after `pause` or `drain`.
    Resume,
    /// Take nothing new from other nodes, and wait until what runs has ended.
    Drain(sharing::Drain),
    /// Carry 127.0.0.1:11434 of a place without a network to a tailherd's unix socket.
    Pipe(pipe::Args),
    /// Show a mesh of three devices in this process, an outage and a failover.
    Demo(demo::Args),
    /// Print the version.
    Version,
}

/// What every command is given.
struct Context<'a> {
    /// `--config`.
    config: Option<PathBuf>,
    env: Arc<dyn Env>,
    out: &'a mut dyn Write,
}

impl Context<'_> {
    /// The configuration in force.
    fn load(&self) -> Result<Config, Failure> {
        Ok(config::load(self.config.as_deref(), &*self.env)?)
    }
}

/// Why a command did not do what it was asked for.
#[derive(Debug)]
enum Failure {
    /// The configuration is wrong: exit code 2.
    Config(ConfigError),
    /// Anything else: exit code 1.
    Failed(anyhow::Error),
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::Config(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::Failed(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Failed(error.into())
    }
}

/// Runs the program with the arguments and the environment of this process.
pub fn main() -> ExitCode {
    // Not locked: the log writes to stderr too, from other threads.
    let (mut out, mut err) = (io::stdout(), io::stderr());
    ExitCode::from(run(std::env::args_os(), Arc::new(ProcessEnv), &mut out, &mut err))
}

fn run(
    args: impl IntoIterator<Item = OsString>,
    env: Arc<dyn Env>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(usage) => {
            let text = usage.render();
            // There is nowhere left to say that nothing can be said.
            let _ = if usage.use_stderr() { write!(err, "{text}") } else { write!(out, "{text}") };
            return u8::try_from(usage.exit_code()).unwrap_or(2);
        }
    };
    let context = Context { config: args.config, env, out: &mut *out };
    let done =
        dispatch(args.command.unwrap_or(Command::Serve), context).and_then(|()| Ok(out.flush()?));
    let (code, message) = match done {
        Ok(()) => return 0,
        Err(Failure::Config(error)) => (2, error.to_string()),
        Err(Failure::Failed(error)) if is_closed_pipe(&error) => return 0,
        Err(Failure::Failed(error)) => (1, format!("{error:#}")),
    };
    let _ = writeln!(err, "tailherd: {message}");
    code
}

fn dispatch(command: Command, context: Context<'_>) -> Result<(), Failure> {
    match command {
        Command::Serve => runtime()?.block_on(serve::run(context)),
        Command::Check(args) => check::run(args, context),
        Command::Schema(args) => schema::run(args, context),
        Command::Status(args) => runtime()?.block_on(status::run(args, context)),
        Command::Models(args) => runtime()?.block_on(models::run(args, context)),
        Command::Explain(args) => runtime()?.block_on(explain::run(args, context)),
        Command::Requests(args) => runtime()?.block_on(requests::run(args, context)),
        Command::Access(args) => runtime()?.block_on(access::run(args, context)),
        Command::Doctor(args) => runtime()?.block_on(doctor::run(args, context)),
        Command::Trust(args) => runtime()?.block_on(trust::run(args, context)),
        Command::Lan(args) => runtime()?.block_on(lan::run(args, context)),
        Command::Import(args) => import::run(args, context),
        Command::Offline(args) => runtime()?.block_on(offline::run(args, context)),
        Command::Pause(args) => runtime()?.block_on(sharing::pause(args, context)),
        Command::Resume => runtime()?.block_on(sharing::resume(context)),
        Command::Drain(args) => runtime()?.block_on(sharing::drain(args, context)),
        Command::Pipe(args) => runtime()?.block_on(pipe::run(args, context)),
        Command::Demo(args) => runtime()?.block_on(demo::run(args, context)),
        Command::Version => version::run(context),
    }
}

/// Two workers carry a household's traffic, and idle threads cost memory.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FixedEnv;

    /// Exit code, stdout, stderr.
    fn tailherd(env: FixedEnv, args: &[&str]) -> (u8, String, String) {
        let args = std::iter::once("tailherd").chain(args.iter().copied()).map(OsString::from);
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let code = run(args, Arc::new(env), &mut out, &mut err);
        (code, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
    }

    #[test]
    fn a_wrong_call_is_2_and_help_is_0() {
        assert_eq!(tailherd(FixedEnv::default(), &["frobnicate"]).0, 2);
        assert_eq!(tailherd(FixedEnv::default(), &["check", "--frob"]).0, 2);
        let (code, out, _) = tailherd(FixedEnv::default(), &["--help"]);
        assert!(code == 0 && out.contains("check"), "{out}");
        let (code, out, _) = tailherd(FixedEnv::default(), &["version"]);
        assert_eq!((code, out), (0, format!("tailherd {}\n", env!("CARGO_PKG_VERSION"))));
    }

    #[test]
    fn an_order_to_nobody_fails_and_says_how_to_start_one() {
        let folder = tempfile::tempdir().unwrap();
        let env = || FixedEnv::default().with("TAILHERD_STATE", folder.path().to_str().unwrap());
        for args in [&["pause", "2h"][..], &["resume"], &["drain"], &["offline", "on"]] {
            let (code, out, err) = tailherd(env(), args);
            assert_eq!((code, out.as_str()), (1, ""), "{args:?}");
            assert!(err.contains("tailherd serve"), "{err}");
        }
        let (code, _, err) = tailherd(env(), &["pause", "soon"]);
        assert!(code == 2 && err.contains("`soon` is not a duration"), "{err}");
    }

    #[test]
    fn check_says_what_it_found() {
        let env = || {
            FixedEnv::default()
                .with_file("/good", "{ admin: { prometheusFile: '/x' } }")
                .with_file("/bad", "{ lisen: [] }")
        };
        let (code, out, err) = tailherd(env(), &["check", "/good"]);
        assert_eq!((code, err.as_str()), (0, ""));
        assert!(
            out.contains("/good: good") && out.contains("admin.prometheusFile has no effect"),
            "{out}"
        );
        for args in [&["check", "/bad"][..], &["--config", "/bad", "check"]] {
            let (code, out, err) = tailherd(env(), args);
            assert_eq!((code, out.as_str()), (2, ""));
            assert!(err.contains("/bad:1:3: lisen: unknown key `lisen`"), "{err}");
            assert!(err.contains("did you mean `listen`?"), "{err}");
        }
        let (code, _, err) = tailherd(env(), &["check", "/missing"]);
        assert!(code == 2 && err.contains("/missing: cannot be read"), "{err}");
        let (code, out, _) = tailherd(env(), &["check"]);
        assert!(code == 0 && out.contains("no file"), "{out}");
    }

    #[test]
    fn the_schema_is_json_and_the_example_a_configuration() {
        let (code, out, _) = tailherd(FixedEnv::default(), &["schema"]);
        assert_eq!(code, 0);
        assert!(serde_json::from_str::<serde_json::Value>(&out).unwrap().is_object());
        let (_, out, _) = tailherd(FixedEnv::default(), &["schema", "--example"]);
        assert!(config::parse(&out, None, &FixedEnv::default()).is_ok());
    }

    #[test]
    fn a_reader_that_leaves_early_is_no_failure() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let args = ["tailherd", "schema"].map(OsString::from);
        let mut err = Vec::new();
        assert_eq!(run(args, Arc::new(FixedEnv::default()), &mut Closed, &mut err), 0);
        assert!(err.is_empty());
    }

    #[test]
    fn a_status_of_nobody_fails_and_says_what_to_do() {
        // Port 1 is nobody's; nothing is sent to it beyond the attempt.
        let env = FixedEnv::default().with_file("/c", "{ admin: { listen: '127.0.0.1:1' } }");
        for command in [
            &["status"][..],
            &["models"],
            &["explain", "tiny"],
            &["requests"],
            &["requests", "--follow"],
        ] {
            let args = [&["--config", "/c"], command].concat();
            let (code, out, err) = tailherd(env.clone(), &args);
            assert_eq!((code, out.as_str()), (1, ""), "{err}");
            assert!(err.contains("127.0.0.1:1") && err.contains("tailherd serve"), "{err}");
        }
    }
}
