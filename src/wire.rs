//! The protocol: the code generated from `proto/`, and what turns its messages into our own types
//! and back. What is in a message has been checked once it is one of ours.

/// Messages and services as generated.
#[allow(clippy::all, clippy::pedantic, missing_docs, unused_qualifications, unreachable_pub)]
pub mod proto {
    tonic::include_proto!("fts.v1");
}

/// Every method of our services, as the descriptors have them.
pub mod method {
    include!(concat!(env!("OUT_DIR"), "/methods.rs"));
}

#[cfg(feature = "server")]
pub mod admin;
pub mod codec;
#[cfg(feature = "server")]
pub mod control;
pub mod session;
pub mod signed;
#[cfg(feature = "client")]
pub mod upload_body;

/// All of `proto/`, for reflection.
pub const DESCRIPTORS: &[u8] = tonic::include_file_descriptor_set!("fts_descriptor");
