//! What every test stands on: a service, projects and runners to bring together.
//!
//! Each program that includes this must hold `selftest` too (it does, through the line below): the tests of the
//! support use all of it, which keeps dead helpers from gathering. The demo uses a part only and says so where it
//! includes this file: `#[expect(dead_code, reason = "…")]`.
//!
//! Every module is marked `cfg(test)`, which holds in both programs, so that the lints know: `unwrap` is fine here.

/// The text of a command list over which both sides compute their hash.
#[cfg(test)]
pub(crate) mod canonical;
/// Projects to run commands in: one without Django for speed, one with the real thing.
#[cfg(test)]
pub(crate) mod project;
/// Starts the real binary, listens to its log, and leaves no process behind.
#[cfg(test)]
pub(crate) mod runner;
/// Proves the support itself, against raw sockets and against the published Python runner.
#[cfg(test)]
mod selftest;
/// The service as the protocol describes it, with every fault a network or a server can have.
#[cfg(test)]
pub(crate) mod server;
/// Where a runner keeps what it must not forget, and the end of all that it started.
#[cfg(test)]
pub(crate) mod state_dir;
/// The few calls to the kernel that the standard library lacks.
#[cfg(test)]
pub(crate) mod sys;
