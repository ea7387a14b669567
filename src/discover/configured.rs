//! Servers named by hand (`ollamas`): nodes that no tailnet knows.

use crate::config::ConfiguredServer;
use crate::directory::event::Server;
use crate::types::{Dial, NodeName};

/// The servers of the configuration as the directory takes them. Two with one name: the first.
pub(super) fn servers(written: &[ConfiguredServer]) -> Vec<Server> {
    let mut servers: Vec<Server> = Vec::with_capacity(written.len());
    for entry in written {
        let name = NodeName::parse(&entry.name).unwrap_or_else(|| NodeName::from_dns(&entry.name));
        if servers.iter().any(|s| s.name == name) {
            continue;
        }
        servers.push(Server {
            name,
            dial: Dial::Configured {
                host: entry.server.host.clone(),
                port: entry.server.port,
                tls: entry.server.tls,
            },
            prefix: entry.server.prefix.clone(),
        });
    }
    servers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn entry(name: &str, host: &str) -> ConfiguredServer {
        let server =
            config::Server { host: host.into(), port: 11434, tls: false, prefix: "".into() };
        ConfiguredServer { name: name.to_owned(), server }
    }

    #[test]
    fn each_name_is_one_server() {
        let got = servers(&[entry("NAS", "192.168.1.100"), entry("nas", "10.0.0.1")]);
        let [nas] = got.as_slice() else { panic!("{got:?}") };
        assert_eq!(nas.name.as_str(), "nas");
        let Dial::Configured { host, port, tls } = &nas.dial else { panic!("{nas:?}") };
        assert_eq!((&**host, *port, *tls), ("192.168.1.100", 11434, false));
    }
}
