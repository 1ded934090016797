//! What a test cannot do to the machine it does to a runner and all that it starts: sets their time of day, makes their
//! disk read-only. By a library that is loaded before all others (`preload.c` beside this file).

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::runner::Runner;
use super::state_dir::StateDir;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/preload.c");

/// The library, and the two files by which it is told what to do.
pub(crate) struct Preload(TempDir);

impl Preload {
    pub(crate) fn new() -> Self {
        let preload = Preload(TempDir::new().unwrap());
        let mut cc = Command::new("cc");
        cc.args(["-Wall", "-Wextra", "-shared", "-fPIC", "-o"]).arg(preload.path("preload.so")).arg(SOURCE);
        assert!(cc.status().expect("the tests need a C compiler").success());
        preload.set_clock_ahead(0);
        preload
    }

    /// Sets the time of day so far ahead of the machine's; at once and whole, whoever reads it meanwhile.
    pub(crate) fn set_clock_ahead(&self, seconds: i32) {
        fs::write(self.path("next"), seconds.to_string()).unwrap();
        fs::rename(self.path("next"), self.path("clock")).unwrap();
    }

    /// From now on nothing in the state directory can be changed, by open files neither; or all can again.
    pub(crate) fn set_read_only(&self, is_read_only: bool) {
        if is_read_only {
            fs::write(self.path("read-only"), "").unwrap();
        } else {
            fs::remove_file(self.path("read-only")).unwrap();
        }
    }

    pub(crate) fn applied<'a>(&self, runner: Runner<'a>, state: &StateDir) -> Runner<'a> {
        runner
            .env("LD_PRELOAD", self.path("preload.so"))
            .env("CLOCK_FILE", self.path("clock"))
            .env("READ_ONLY_FILE", self.path("read-only"))
            .env("READ_ONLY_DIR", fs::canonicalize(state.path()).unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
