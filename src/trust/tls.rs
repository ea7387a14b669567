//! TLS between two nodes that know each other's key.
//!
//! In: one of our keys, and the key the other side has to show. Out: a rustls configuration.
//! There is no certificate and no authority: what a side shows is its bare public key (raw
//! public keys, RFC 7250), and it proves in the handshake that it holds the private part.
//!
//! TLS 1.3 only. No tickets, no resumption and no early data: each of them would let a
//! connection come to be without the key being looked at again. The cryptography is always
//! named, never what another crate made the process's default.

use std::fmt;
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, Error,
    HandshakeKind, ProtocolVersion, ServerConfig, SignatureScheme,
};

use super::keys::Own;
use crate::types::PublicKey;

/// What a connection on the local network says it speaks.
pub const LAN: &[u8] = b"tailherd/1";

/// What a first talk over the tailnet says it speaks. It is another word than [`LAN`], so
/// that a handshake in which any key is accepted never passes for one in which one key is.
pub const HELLO: &[u8] = b"tailherd-hello/1";

/// Which keys of clients a server takes; asked in each handshake.
pub type Accept = Arc<dyn Fn(&PublicKey) -> bool + Send + Sync>;

static PROVIDER: LazyLock<Arc<CryptoProvider>> =
    LazyLock::new(|| Arc::new(rustls::crypto::ring::default_provider()));

/// Calls a node on the local network as `own`, and accepts exactly the key `expect`. The
/// server's name has to be a [tag](super::tag::sni).
pub fn client(own: &Own, expect: PublicKey) -> Result<Arc<ClientConfig>, Error> {
    let mut config = calling(own, Expect::Only(expect))?;
    config.alpn_protocols = vec![LAN.to_vec()];
    Ok(Arc::new(config))
}

/// Calls a node over the tailnet as `own`, to learn its key: any is accepted. No server name
/// is sent, whatever it is given.
pub fn client_hello(own: &Own) -> Result<Arc<ClientConfig>, Error> {
    let mut config = calling(own, Expect::Any)?;
    config.alpn_protocols = vec![HELLO.to_vec()];
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// Answers on the local network as `own`, to clients whose key `accept` takes.
pub fn server(own: &Own, accept: Accept) -> Result<Arc<ServerConfig>, Error> {
    let mut config = answering(own, Expect::If(accept))?;
    config.alpn_protocols = vec![LAN.to_vec()];
    Ok(Arc::new(config))
}

/// Answers a first talk over the tailnet as `own`: the client has to show a key, any key.
pub fn server_hello(own: &Own) -> Result<Arc<ServerConfig>, Error> {
    let mut config = answering(own, Expect::Any)?;
    config.alpn_protocols = vec![HELLO.to_vec()];
    Ok(Arc::new(config))
}

/// The key the other side proved to hold, once the handshake is over. `None` unless it was a
/// whole TLS 1.3 handshake in one of our two protocols.
pub fn peer_key(connection: &CommonState) -> Option<PublicKey> {
    let whole = matches!(
        connection.handshake_kind()?,
        HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest
    );
    let ours = [LAN, HELLO].contains(&connection.alpn_protocol()?);
    let tls13 = connection.protocol_version()? == ProtocolVersion::TLSv1_3;
    let [shown] = connection.peer_certificates()? else { return None };
    let key = PublicKey::from_spki(shown)?;
    (whole && ours && tls13 && !connection.is_handshaking()).then_some(key)
}

fn calling(own: &Own, expect: Expect) -> Result<ClientConfig, Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(expect))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
            own.certified(),
        )));
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

fn answering(own: &Own, expect: Expect) -> Result<ServerConfig, Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&PROVIDER))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(expect))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(own.certified())));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    Ok(config)
}

/// Which keys are accepted.
enum Expect {
    Only(PublicKey),
    If(Accept),
    Any,
}

impl Expect {
    fn check(&self, shown: &CertificateDer<'_>, more: &[CertificateDer<'_>]) -> Result<(), Error> {
        let key = PublicKey::from_spki(shown).filter(|_| more.is_empty());
        let key = key.ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let accepted = match self {
            Expect::Only(only) => *only == key,
            Expect::If(accept) => accept(&key),
            Expect::Any => true,
        };
        let refused = CertificateError::ApplicationVerificationFailure;
        accepted.then_some(()).ok_or(Error::InvalidCertificate(refused))
    }
}

/// That the other side holds the private part of the key it shows.
fn holds(
    message: &[u8],
    shown: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature_with_raw_key(
        message,
        &SubjectPublicKeyInfoDer::from(shown.as_ref()),
        signed,
        &PROVIDER.signature_verification_algorithms,
    )
}

fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("only TLS 1.3 is spoken".to_owned()))
}

impl ServerCertVerifier for Expect {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(shown, more).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _shown: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        holds(message, shown, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for Expect {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(shown, more).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _shown: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        shown: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        holds(message, shown, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl fmt::Debug for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Expect::Only(_) => "one key",
            Expect::If(_) => "the keys of pins",
            Expect::Any => "any key",
        })
    }
}

#[cfg(test)]
mod tests;
