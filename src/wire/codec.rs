//! How messages are encoded: as tonic does it, but for the buffers. tonic begins each of them, two
//! to a call, with 8 KiB, which a session of heartbeats never needs and thousands of sessions would
//! hold. They grow with what is sent.

use std::marker::PhantomData;

use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstDecoder, ProstEncoder};

/// A protobuf codec with small buffers.
#[derive(Debug)]
pub struct SmallBuffers<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for SmallBuffers<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for SmallBuffers<T, U>
where
    T: prost::Message + Send + 'static,
    U: prost::Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(settings())
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(settings())
    }
}

/// The second number is tonic's own: what is ready is sent together up to this size.
fn settings() -> BufferSettings {
    BufferSettings::new(BUFFER_BYTES, 32 << 10)
}

/// Dozens of heartbeats; the least that a buffer keeps when it is made anew.
const BUFFER_BYTES: usize = 1 << 10;
