//! Real handshakes over a pipe.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustls::client::ClientSessionMemoryCache;
use rustls::server::ServerSessionMemoryCache;
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::super::keys::Ring;
use super::super::tag;
use super::*;
use crate::types::Wall;

fn own() -> Own {
    Ring::new(Wall(0)).unwrap().own().clone()
}

fn only(key: PublicKey) -> Accept {
    Arc::new(move |shown| *shown == key)
}

type Client = io::Result<client::TlsStream<DuplexStream>>;
type Server = io::Result<server::TlsStream<DuplexStream>>;

/// Both ends of a handshake, as each sees it.
async fn shake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> (Client, Server) {
    shake_as("tailherd.internal", client, server).await
}

async fn shake_as(
    name: &str,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> (Client, Server) {
    let (near, far) = duplex(64 * 1024);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    tokio::join!(
        TlsConnector::from(client).connect(name, near),
        TlsAcceptor::from(server).accept(far)
    )
}

/// What the client gets once the server said `hello`; an error if it was turned away.
async fn talk((client, server): (Client, Server)) -> io::Result<String> {
    let mut server = server?;
    server.write_all(b"hello").await?;
    server.shutdown().await?;
    let mut text = String::new();
    client?.read_to_string(&mut text).await?;
    Ok(text)
}

/// That neither end has a connection to speak on: the server saw no caller, and the client,
/// which may believe for a moment that all is well, reads no byte.
async fn refused_by_server((client, server): (Client, Server)) {
    assert!(server.is_err());
    if let Ok(mut client) = client {
        let mut bytes = Vec::new();
        assert!(client.read_to_end(&mut bytes).await.is_err());
        assert_eq!(bytes, b"");
    }
}

#[tokio::test]
async fn each_side_learns_the_others_key() {
    let (here, there) = (own(), own());
    let pinned = (client(&here, there.key()).unwrap(), server(&there, only(here.key())).unwrap());
    let first = (client_hello(&here).unwrap(), server_hello(&there).unwrap());
    for (client, server) in [pinned, first] {
        let (client, server) = shake(client, server).await;
        let (client, server) = (client.unwrap(), server.unwrap());
        assert_eq!(peer_key(client.get_ref().1), Some(there.key()));
        assert_eq!(peer_key(server.get_ref().1), Some(here.key()));
        assert_eq!(talk((Ok(client), Ok(server))).await.unwrap(), "hello");
    }
}

#[tokio::test]
async fn a_server_with_another_key_is_refused() {
    let (here, there, spoofer) = (own(), own(), own());
    let accept: Accept = Arc::new(|_| true);
    let shaken =
        shake(client(&here, there.key()).unwrap(), server(&spoofer, accept).unwrap()).await;
    assert!(shaken.0.is_err() && shaken.1.is_err());
}

#[tokio::test]
async fn a_client_that_is_no_pin_is_refused() {
    let (here, there, other) = (own(), own(), own());
    let shaken =
        shake(client(&here, there.key()).unwrap(), server(&there, only(other.key())).unwrap());
    refused_by_server(shaken.await).await;
}

/// Says that it would show a bare key, and has none.
#[derive(Debug)]
struct Keyless;

impl rustls::client::ResolvesClientCert for Keyless {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }

    fn has_certs(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn a_client_without_a_key_is_refused() {
    let there = own();
    let calling = || {
        ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Expect::Any))
    };
    for mut keyless in
        [calling().with_no_client_auth(), calling().with_client_cert_resolver(Arc::new(Keyless))]
    {
        keyless.alpn_protocols = vec![LAN.to_vec(), HELLO.to_vec()];
        let keyless = Arc::new(keyless);
        for server in [server(&there, Arc::new(|_| true)).unwrap(), server_hello(&there).unwrap()] {
            refused_by_server(shake(Arc::clone(&keyless), server).await).await;
        }
    }
}

/// Shows the public key of `shown` and signs with `with`.
fn impostor(shown: &Own, with: &Own) -> Arc<CertifiedKey> {
    let signer = Arc::clone(&with.certified().key);
    Arc::new(CertifiedKey::new(vec![CertificateDer::from(shown.key().spki())], signer))
}

#[tokio::test]
async fn a_key_that_is_shown_but_not_held_is_refused() {
    let (here, there, thief) = (own(), own(), own());
    let mut posing = answering(&thief, Expect::Any).unwrap();
    posing.alpn_protocols = vec![LAN.to_vec(), HELLO.to_vec()];
    posing.cert_resolver =
        Arc::new(AlwaysResolvesServerRawPublicKeys::new(impostor(&there, &thief)));
    let posing = Arc::new(posing);
    for client in [client(&here, there.key()).unwrap(), client_hello(&here).unwrap()] {
        let shaken = shake(client, Arc::clone(&posing)).await;
        assert!(shaken.0.is_err() && shaken.1.is_err(), "a server that poses");
    }
    let mut posing = calling(&thief, Expect::Any).unwrap();
    posing.alpn_protocols = vec![LAN.to_vec(), HELLO.to_vec()];
    posing.client_auth_cert_resolver =
        Arc::new(AlwaysResolvesClientRawPublicKeys::new(impostor(&here, &thief)));
    let posing = Arc::new(posing);
    for server in [server(&there, only(here.key())).unwrap(), server_hello(&there).unwrap()] {
        refused_by_server(shake(Arc::clone(&posing), server).await).await;
    }
}

#[tokio::test]
async fn the_rule_is_asked_in_each_handshake() {
    let (here, there) = (own(), own());
    let (live, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let accept: Accept = {
        let (live, asked) = (Arc::clone(&live), Arc::clone(&asked));
        Arc::new(move |_| {
            asked.fetch_add(1, Ordering::Relaxed);
            live.load(Ordering::Relaxed)
        })
    };
    let (client, server) = (client(&here, there.key()).unwrap(), server(&there, accept).unwrap());
    for n in 1..=2 {
        assert!(talk(shake(Arc::clone(&client), Arc::clone(&server)).await).await.is_ok());
        assert_eq!(asked.load(Ordering::Relaxed), n);
    }
    live.store(false, Ordering::Relaxed);
    refused_by_server(shake(client, server).await).await;
}

/// Twice with each pair, and each time the whole handshake, without a ticket.
#[tokio::test]
async fn no_connection_resumes_another() {
    let (here, there) = (own(), own());
    let ours = || client(&here, there.key()).unwrap();
    let answer = || server(&there, only(here.key())).unwrap();
    // A client that would resume if it could, and a server that would let it.
    let mut eager = calling(&here, Expect::Only(there.key())).unwrap();
    eager.alpn_protocols = vec![LAN.to_vec()];
    eager.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(8)));
    eager.enable_early_data = true;
    let mut generous = answering(&there, Expect::If(only(here.key()))).unwrap();
    generous.alpn_protocols = vec![LAN.to_vec()];
    generous.session_storage = ServerSessionMemoryCache::new(8);
    generous.send_tls13_tickets = 2;
    generous.max_early_data_size = 1024;
    let (eager, generous) = (Arc::new(eager), Arc::new(generous));
    // Each of these alone would do, so no connection shows that one of them is gone.
    let (calls, answers) = (ours(), answer());
    assert_eq!((answers.send_tls13_tickets, answers.session_storage.can_cache()), (0, false));
    assert_eq!((answers.max_early_data_size, answers.send_half_rtt_data), (0, false));
    assert!(!calls.enable_early_data);
    async fn twice(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> (bool, u32) {
        let mut tickets = 0;
        let mut whole = true;
        for _ in 0..2 {
            let (near, far) = shake(Arc::clone(client), Arc::clone(server)).await;
            let (mut near, mut far) = (near.unwrap(), far.unwrap());
            whole &= peer_key(near.get_ref().1).is_some() && peer_key(far.get_ref().1).is_some();
            let kind = near.get_ref().1.handshake_kind();
            assert_eq!(kind, far.get_ref().1.handshake_kind());
            assert_eq!(whole, kind == Some(HandshakeKind::Full), "{kind:?}");
            far.write_all(b"x").await.unwrap();
            far.shutdown().await.unwrap();
            let _ = near.read_u8().await.unwrap();
            tickets += near.get_ref().1.tls13_tickets_received();
        }
        (whole, tickets)
    }
    assert_eq!(twice(&ours(), &answer()).await, (true, 0));
    assert_eq!(twice(&eager, &answer()).await, (true, 0), "our server lets nobody resume");
    assert!(twice(&ours(), &generous).await.0, "our client does not resume");
    let (whole, tickets) = twice(&eager, &generous).await;
    assert!(!whole && tickets > 0, "the two that would do: so the above is not luck");
}

#[tokio::test]
async fn nothing_older_than_tls13_is_spoken() {
    let (here, there) = (own(), own());
    let old = [&rustls::version::TLS12];
    let mut caller = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&old)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Expect::Any))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
            here.certified(),
        )));
    caller.alpn_protocols = vec![LAN.to_vec()];
    let shaken = shake(Arc::new(caller), server(&there, only(here.key())).unwrap()).await;
    assert!(shaken.0.is_err() && shaken.1.is_err());
    let mut answerer = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&old)
        .unwrap()
        .with_client_cert_verifier(Arc::new(Expect::Any))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(there.certified())));
    answerer.alpn_protocols = vec![LAN.to_vec()];
    let shaken = shake(client(&here, there.key()).unwrap(), Arc::new(answerer)).await;
    assert!(shaken.0.is_err() && shaken.1.is_err());
    let expect = Expect::Any;
    assert!(ServerCertVerifier::requires_raw_public_keys(&expect));
    assert!(ClientCertVerifier::requires_raw_public_keys(&expect));
}

#[tokio::test]
async fn a_first_talk_never_passes_for_a_pinned_one() {
    let (here, there) = (own(), own());
    let any: Accept = Arc::new(|_| true);
    let shaken = shake(client_hello(&here).unwrap(), server(&there, any).unwrap()).await;
    assert!(shaken.0.is_err() && shaken.1.is_err());
    let pinned = client(&here, there.key()).unwrap();
    let shaken = shake(pinned, server_hello(&there).unwrap()).await;
    assert!(shaken.0.is_err() && shaken.1.is_err());
    // One that names no protocol gets through TLS, and is nobody.
    let mute = Arc::new(calling(&here, Expect::Only(there.key())).unwrap());
    let (client, server) = shake(mute, server_hello(&there).unwrap()).await;
    assert_eq!(peer_key(server.unwrap().get_ref().1), None);
    assert_eq!(peer_key(client.unwrap().get_ref().1), None);
}

/// Each message cut into small records, which arrive one byte after the other.
#[test]
fn a_key_counts_only_when_the_handshake_is_over() {
    let (here, there) = (own(), own());
    let mut caller = Arc::unwrap_or_clone(client(&here, there.key()).unwrap());
    let mut answerer = Arc::unwrap_or_clone(server(&there, only(here.key())).unwrap());
    (caller.max_fragment_size, answerer.max_fragment_size) = (Some(32), Some(32));
    let name = ServerName::try_from("tailherd.internal").unwrap();
    let mut near = rustls::ClientConnection::new(Arc::new(caller), name).unwrap();
    let mut far = rustls::ServerConnection::new(Arc::new(answerer)).unwrap();
    let mut rounds = 0;
    while near.is_handshaking() || far.is_handshaking() {
        let mut bytes = Vec::new();
        near.write_tls(&mut bytes).unwrap();
        for byte in std::mem::take(&mut bytes) {
            far.read_tls(&mut &[byte][..]).unwrap();
            far.process_new_packets().unwrap();
            assert_eq!(far.is_handshaking(), peer_key(&far).is_none());
        }
        far.write_tls(&mut bytes).unwrap();
        for byte in bytes {
            near.read_tls(&mut &[byte][..]).unwrap();
            near.process_new_packets().unwrap();
            assert_eq!(near.is_handshaking(), peer_key(&near).is_none());
        }
        rounds += 1;
        assert!(rounds < 99);
    }
    assert_eq!((peer_key(&near), peer_key(&far)), (Some(there.key()), Some(here.key())));
}

/// Who calls with a tag is answered with the key it knows, also when that key was replaced.
#[tokio::test]
async fn the_name_that_is_called_says_which_of_our_keys_is_known() {
    let here = own();
    let mut ring = Ring::new(Wall(0)).unwrap();
    let first = ring.current();
    ring.rotate(Wall(700_000)).unwrap();
    let now = Wall(700_100);
    let at = "10.0.0.2:11436".parse().unwrap();
    for known in [first, ring.current()] {
        let name = tag::sni(&known, at, now, [7; 8]);
        let (near, far) = duplex(64 * 1024);
        let connector = TlsConnector::from(client(&here, known).unwrap());
        let answer = async {
            let idle = tokio_rustls::LazyConfigAcceptor::new(Default::default(), far).await?;
            let called = idle.client_hello().server_name().unwrap().to_owned();
            let own: Vec<_> = ring.all().map(Own::key).collect();
            let (key, nonce) = tag::of_sni(&called, &own, at, now).unwrap();
            assert_eq!((key, nonce), (known, [7; 8]));
            let config = server(ring.find(&key).unwrap(), only(here.key())).unwrap();
            idle.into_stream(config).await
        };
        let name = ServerName::try_from(name).unwrap();
        let shaken = tokio::join!(connector.connect(name, near), answer);
        assert_eq!(talk(shaken).await.unwrap(), "hello");
    }
}

/// Everything that went over the wire, both ways.
async fn heard(name: &str, client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Vec<u8> {
    let ((near, mut wire_a), (mut wire_b, far)) = (duplex(65_536), duplex(65_536));
    let heard = Mutex::new(Vec::new());
    let wire = async {
        let (mut a, mut b) = (vec![0; 65_536], vec![0; 65_536]);
        loop {
            tokio::select! {
                n = wire_a.read(&mut a) => match n.unwrap() {
                    0 => break,
                    n => {
                        heard.lock().extend_from_slice(&a[..n]);
                        wire_b.write_all(&a[..n]).await.unwrap();
                    }
                },
                n = wire_b.read(&mut b) => match n.unwrap() {
                    0 => break,
                    n => {
                        heard.lock().extend_from_slice(&b[..n]);
                        wire_a.write_all(&b[..n]).await.unwrap();
                    }
                },
            }
        }
    };
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let ends = async {
        let shaken = tokio::join!(
            TlsConnector::from(client).connect(name, near),
            TlsAcceptor::from(server).accept(far)
        );
        assert_eq!(talk(shaken).await.unwrap(), "hello");
    };
    tokio::join!(wire, ends);
    heard.into_inner()
}

#[tokio::test]
async fn who_listens_sees_no_key_and_no_name() {
    let (here, there) = (own(), own());
    let holds = |heard: &[u8], what: &[u8]| heard.windows(what.len()).any(|w| w == what);
    let name = tag::sni(&there.key(), "10.0.0.2:11436".parse().unwrap(), Wall(9), [1; 8]);
    let pinned = client(&here, there.key()).unwrap();
    let bytes = heard(&name, pinned, server(&there, only(here.key())).unwrap()).await;
    assert!(holds(&bytes, name.as_bytes()), "the tag is what is seen");
    for key in [here.key(), there.key()] {
        assert!(!holds(&bytes, key.bytes()));
    }
    let first = client_hello(&here).unwrap();
    let bytes = heard("desk.example.ts.net", first, server_hello(&there).unwrap()).await;
    assert!(holds(&bytes, HELLO));
    assert!(!holds(&bytes, b"desk"), "a first talk sends no name, whatever it was given");
    for key in [here.key(), there.key()] {
        assert!(!holds(&bytes, key.bytes()));
    }
}

#[test]
fn only_one_bare_ed25519_key_is_looked_at() {
    let key = own();
    let spki = key.key().spki();
    let der = |bytes: &[u8]| CertificateDer::from(bytes.to_vec());
    let expect = Expect::Any;
    assert!(expect.check(&der(&spki), &[]).is_ok());
    assert!(expect.check(&der(&spki), &[der(&spki)]).is_err(), "two");
    for bytes in [&spki[..43], &spki[12..], b"", &[&spki[..], b"\0"].concat()] {
        assert!(expect.check(&der(bytes), &[]).is_err(), "{bytes:?}");
    }
    let only = Expect::Only(key.key());
    assert!(only.check(&der(&spki), &[]).is_ok());
    assert!(only.check(&der(&own().key().spki()), &[]).is_err());
}
