//! Bodies that are produced while they are sent, and never end cleanly before their last byte.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, MessageBody};
use actix_web::web::Bytes;
use tokio::sync::mpsc;

/// What a producer sends.
pub(super) enum Piece {
    /// Some of the bytes.
    Bytes(Bytes),
    /// There will be no more, and these weren't all.
    Failed(String),
    /// These were all. A producer that goes without having said so has failed.
    End,
}

/// A piece that waits while another is sent.
pub(super) fn channel() -> (mpsc::Sender<Piece>, PartStream) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, PartStream(receiver))
}

/// Pieces as they are produced.
pub(super) struct PartStream(mpsc::Receiver<Piece>);

/// A body of pieces. `length` is exact where it is known: a stream that ends before it breaks the connection.
pub(super) struct Streamed {
    pub stream: PartStream,
    pub length: Option<u64>,
}

impl MessageBody for Streamed {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.length.map_or(BodySize::Stream, BodySize::Sized)
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        self.stream.0.poll_recv(cx).map(|piece| match piece {
            Some(Piece::Bytes(bytes)) => Some(Ok(bytes)),
            Some(Piece::End) => None,
            Some(Piece::Failed(why)) => Some(Err(why.into())),
            None => Some(Err("the result broke off".into())),
        })
    }
}

/// The body of an answer to HEAD: its length and nothing else.
pub(super) struct Empty {
    pub length: Option<u64>,
}

impl MessageBody for Empty {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        self.length.map_or(BodySize::Stream, BodySize::Sized)
    }

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Infallible>>> {
        Poll::Ready(None)
    }
}
