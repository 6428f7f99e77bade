//! Compiles the protocol with protox, in pure Rust: nobody needs protoc.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;
use prost_types::FileDescriptorSet;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    // For `sqlx::migrate!`, which reads them while it compiles.
    println!("cargo:rerun-if-changed=migrations");
    let files = [
        "fts/v1/types.proto",
        "fts/v1/file_transfer.proto",
        "fts/v1/control.proto",
        "fts/v1/enrolment.proto",
        "fts/v1/admin.proto",
    ];
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    // For reflection; compile_fds ignores file_descriptor_set_path.
    fs::write(out.join("fts_descriptor.bin"), descriptors.encode_to_vec())?;
    fs::write(out.join("methods.rs"), methods(&descriptors))?;
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

/// Returns an enum of every method there is, so that a table of them that lacks one does not build.
fn methods(descriptors: &FileDescriptorSet) -> String {
    let mut names: Vec<(String, String)> = Vec::new();
    for file in descriptors.file.iter().filter(|file| file.package() == "fts.v1") {
        for service in &file.service {
            names.extend(service.method.iter().map(|method| {
                let (service, method) = (service.name(), method.name());
                (format!("{service}{method}"), format!("/fts.v1.{service}/{method}"))
            }));
        }
    }
    let each =
        |line: &dyn Fn(&(String, String)) -> String| -> String { names.iter().map(line).collect() };
    format!(
        "/// A method of one of our services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {{
{variants}}}

impl Method {{
    pub const ALL: &[Self] = &[{all}];

    /// Returns its path in a request.
    pub fn path(self) -> &'static str {{
        match self {{
{paths}        }}
    }}

    /// Returns the method of a request, if it is ours.
    pub fn parse(path: &str) -> Option<Self> {{
        match path {{
{parses}            _ => None,
        }}
    }}
}}
",
        variants = each(&|(name, path)| format!("    /// `{path}`\n    {name},\n")),
        all = each(&|(name, _)| format!("Self::{name}, ")),
        paths = each(&|(name, path)| format!("            Self::{name} => \"{path}\",\n")),
        parses = each(&|(name, path)| format!("            \"{path}\" => Some(Self::{name}),\n")),
    )
}
