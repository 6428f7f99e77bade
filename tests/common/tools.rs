//! Programs that a test needs and a machine may lack. On a developer's machine the test is skipped,
//! and says so where it is seen; on CI (`CI=true`) an absent tool is a failure, so that nothing is
//! skipped for ever.

use std::{
    env,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Returns the program `name` of the `PATH`, for the test `test`; `None`, told to the user, if
/// there is none.
///
/// # Panics
/// On CI, if there is none.
pub(crate) fn tool(test: &str, name: &str) -> Option<PathBuf> {
    let found = on_path(name);
    if found.is_none() {
        skipped(test, name);
    }
    found
}

/// Returns a Python that can import `modules`: that of `FTS_PYTHON`, else `python3`.
///
/// # Panics
/// On CI, if there is none.
pub(crate) fn python(test: &str, modules: &[&str]) -> Option<PathBuf> {
    let imports = format!("import {}", modules.join(", "));
    let imports_all = |python: &PathBuf| {
        let mut command = Command::new(python);
        command.args(["-c", &imports]).stdin(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let python = env::var_os("FTS_PYTHON").map(PathBuf::from).or_else(|| on_path("python3"));
    let found = python.filter(imports_all);
    if found.is_none() {
        let modules = modules.join(", ");
        skipped(test, &format!("a Python (or FTS_PYTHON) with the modules {modules}"));
    }
    found
}

/// Says that `test` was skipped because it needs `needs`: on standard error, past libtest, which
/// hides what passing tests print, and in the file `FTS_SKIPS`, which `make test` shows at its end.
///
/// # Panics
/// On CI.
pub(crate) fn skipped(test: &str, needs: &str) {
    assert!(env::var_os("CI").is_none_or(|ci| ci != "true"), "{test} needs {needs}");
    let line = format!("SKIPPED {test}: needs {needs}\n");
    io::stderr().write_all(line.as_bytes()).expect("standard error takes a line");
    if let Some(path) = env::var_os("FTS_SKIPS") {
        let mut file = OpenOptions::new().append(true).create(true).open(path).expect("FTS_SKIPS");
        file.write_all(line.as_bytes()).expect("FTS_SKIPS takes a line");
    }
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
