//! An answer in one piece, read to its end.
//!
//! In flows a body of which the first bytes may be here; out flows all of it, or why it has no
//! end that is worth waiting for.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::timeout;

/// Longest answer in one piece that is held here.
const MOST: usize = 64 << 20;
/// Most of the text of an error that is read.
const ERROR: usize = 64 << 10;

/// Why an answer was not read to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("it fell silent")]
    Silent,
    #[error("it broke off: {0}")]
    Off(String),
    #[error("its answer is longer than any answer")]
    Long,
}

/// All of an answer that began with `first`, if no pause in it is longer than `pause`.
pub(crate) async fn whole<E: ToString>(
    body: &mut (impl Body<Data = Bytes, Error = E> + Unpin),
    first: BytesMut,
    pause: Duration,
) -> Result<Bytes, Broken> {
    let mut all = first;
    loop {
        match timeout(pause, body.frame()).await {
            Err(_) => return Err(Broken::Silent),
            Ok(None) => return Ok(all.freeze()),
            Ok(Some(Err(error))) => return Err(Broken::Off(error.to_string())),
            Ok(Some(Ok(frame))) => {
                all.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
            }
        }
        if all.len() > MOST {
            return Err(Broken::Long);
        }
    }
}

/// The text of an error, as much of it as there is.
pub(crate) async fn error(body: &mut (impl Body<Data = Bytes> + Unpin), pause: Duration) -> Bytes {
    let mut all = BytesMut::new();
    while let Ok(Some(Ok(frame))) = timeout(pause, body.frame()).await {
        let Ok(data) = frame.into_data() else { continue };
        if all.len() + data.len() > ERROR {
            break;
        }
        all.extend_from_slice(&data);
    }
    all.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt;
    use futures_util::stream::{iter, pending};
    use http_body::Frame;
    use http_body_util::StreamBody;

    const PAUSE: Duration = Duration::from_secs(5);

    type Piece = Result<Frame<Bytes>, &'static str>;

    fn piece(text: &'static str) -> Piece {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    fn body(pieces: Vec<Piece>) -> StreamBody<impl futures_util::Stream<Item = Piece> + Unpin> {
        StreamBody::new(iter(pieces))
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_whole_or_it_is_said_why_not() {
        let first = || BytesMut::from("{");
        let read = whole(&mut body(vec![piece("\"a\":"), piece("1}")]), first(), PAUSE).await;
        assert_eq!(read, Ok(Bytes::from_static(b"{\"a\":1}")));
        let read = whole(&mut body(vec![piece("1"), Err("reset")]), first(), PAUSE).await;
        assert_eq!(read, Err(Broken::Off("reset".to_owned())));
        let stalls = iter(vec![piece("1")]).chain(pending());
        let began = tokio::time::Instant::now();
        let read = whole(&mut StreamBody::new(Box::pin(stalls)), first(), PAUSE).await;
        assert_eq!((read, began.elapsed()), (Err(Broken::Silent), PAUSE));
        let endless = iter(0..).map(|_| piece(LARGE));
        assert_eq!(whole(&mut StreamBody::new(endless), first(), PAUSE).await, Err(Broken::Long));
    }

    #[tokio::test(start_paused = true)]
    async fn of_an_error_there_is_what_came() {
        let read = error(&mut body(vec![piece("no "), piece("model"), Err("reset")]), PAUSE).await;
        assert_eq!(read, "no model");
        let stalls = iter(vec![piece("no ")]).chain(pending());
        assert_eq!(error(&mut StreamBody::new(Box::pin(stalls)), PAUSE).await, "no ");
        let endless = iter(0..).map(|_| piece(LARGE));
        assert_eq!(error(&mut StreamBody::new(endless), PAUSE).await.len(), ERROR);
    }

    static LARGE: &str = match std::str::from_utf8(&[b'x'; 16 << 10]) {
        Ok(text) => text,
        Err(_) => "",
    };
}
