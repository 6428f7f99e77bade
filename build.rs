//! Compiles the protocol with protox, in pure Rust: nobody needs protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    // For `sqlx::migrate!`, which reads them while it compiles.
    println!("cargo:rerun-if-changed=migrations");
    let files = ["fts/v1/types.proto", "fts/v1/file_transfer.proto", "fts/v1/control.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // For reflection; compile_fds ignores file_descriptor_set_path.
    fs::write(out.join("fts_descriptor.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(env::var_os("CARGO_FEATURE_SERVER").is_some())
        // The generated `connect()` constructor would collide with the RPC named Connect.
        .build_transport(false)
        .bytes(".fts.v1")
        .codec_path("crate::wire::codec::SmallBuffers")
        .compile_fds(descriptors)?;
    Ok(())
}
