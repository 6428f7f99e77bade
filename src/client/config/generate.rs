//! `fts-client generate-file`: which file it makes.

use std::path::PathBuf;

use clap::Args;

use super::{DEMO_FILE, Surroundings};
use crate::{
    limits,
    settings::{self, ConfigError, Picker},
};

#[allow(clippy::doc_markdown)] // The comments are the text of --help.
#[derive(Debug, Args)]
pub struct GenerateFile {
    /// Its size, for example 500MB or 1GiB.
    #[arg(long, value_name = "SIZE", default_value = "100MB")]
    pub size: String,
    /// Where; without it, $HOME/file_to_download.txt.
    #[arg(long, value_name = "PATH")]
    pub path: Option<PathBuf>,
}

impl GenerateFile {
    /// Returns path and size of the file to make.
    pub fn resolve(self) -> Result<(PathBuf, u64), ConfigError> {
        let mut picker = Picker::new();
        let size = picker.pick(("size", Some(self.size)), None, None, size_of_file);
        let path = self.path.or_else(|| Some(Surroundings::of_process().home?.join(DEMO_FILE)));
        if path.is_none() {
            picker.problem("HOME is not set: name a --path");
        }
        let made = picker.finish(path.zip(size))?;
        Ok(made.expect("without a problem both are there"))
    }
}

fn size_of_file(text: &str) -> Result<u64, String> {
    let size = settings::size(text)?;
    if size > limits::FILE_BYTES_MAX {
        return Err(format!("the largest file has {} bytes", limits::FILE_BYTES_MAX));
    }
    Ok(size)
}
