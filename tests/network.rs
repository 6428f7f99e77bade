//! Server and client behind a real NAT, in network namespaces: mappings expire, routers reboot,
//! lines are cut, addresses change. The scenarios are `tests/network/scenarios.py`; all of them run
//! with `make network`, and a sample here.

#![cfg(all(feature = "client", feature = "server"))]

mod common;

use std::{path::Path, process::Command};

use common::tools;

/// What the scenarios end with on a machine that cannot have such a network.
const NEEDS: i32 = 3;

#[test]
#[ignore = "test-all: needs root, ip, nft and conntrack; takes a minute or two"]
fn whatever_a_network_does_clients_come_back_and_no_command_is_lost_or_run_twice() {
    let name = "whatever_a_network_does_clients_come_back_and_no_command_is_lost_or_run_twice";
    let needed = ["ip", "nft", "conntrack"].map(|program| tools::tool(name, program));
    let Some(python) = tools::python(name, &["ctypes"]) else { return };
    if needed.iter().any(Option::is_none) {
        return;
    }
    let programs = Path::new(env!("CARGO_BIN_EXE_fts-server")).parent().expect("a directory");
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/network/scenarios.py");

    let mut command = Command::new(python);
    command.arg(scenarios).args(["--sample", "--bin"]).arg(programs);
    let ended = command.output().expect("the scenarios start");

    let told = String::from_utf8_lossy(&ended.stdout);
    if ended.status.code() == Some(NEEDS) {
        return tools::skipped(name, told.trim().trim_start_matches("needs "));
    }
    eprintln!("{told}");
    let troubles = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{}: {told}\n{troubles}", ended.status);
}
