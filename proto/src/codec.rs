//! How messages are put into bytes: as protobuf, with small buffers.
//!
//! A stream holds a buffer for each direction for as long as it lives, and a hub has ten thousand that are idle. What is
//! sent on most is a heartbeat; a buffer grows for what is larger.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::ProstCodec;

/// Bytes that a stream holds at first in each direction; tonic's own default is 8 KiB.
const BUFFER: usize = 1024;
/// Encoded bytes from which on they are sent before more is encoded: tonic's own default.
const YIELD_THRESHOLD: usize = 32 * 1024;

/// The codec of all services.
#[derive(Debug, Clone)]
pub struct SmallBuffers<T, U> {
    messages: PhantomData<(T, U)>,
}

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self { messages: PhantomData }
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = <ProstCodec<T, U> as Codec>::Decoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::new(BUFFER, YIELD_THRESHOLD))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(BufferSettings::new(BUFFER, YIELD_THRESHOLD))
    }
}
