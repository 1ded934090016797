//! What every test stands on: a service, projects and runners to bring together.
//!
//! `behaviour` uses all of it, its module `support_itself` what nothing else does, which keeps dead helpers from
//! gathering. The demo uses a part only and says so where it includes this file.
//!
//! Every module is marked `cfg(test)`, which holds in both programs, so that the lints know: `unwrap` is fine here.

/// The text of a command list over which both sides compute their hash.
#[cfg(test)]
pub(crate) mod canonical;
/// How much memory the programs take, against what is promised.
#[cfg(test)]
pub(crate) mod memory;
/// A user without rights.
#[cfg(test)]
pub(crate) mod nobody;
/// Mounts that nobody else sees, for disks that are full.
#[cfg(test)]
pub(crate) mod own_mounts;
/// The time of day and the disk as a runner and its children see them.
#[cfg(test)]
pub(crate) mod preload;
/// Projects to run commands in: one without Django for speed, one with the real thing.
#[cfg(test)]
pub(crate) mod project;
/// A proxy between a runner and its service.
#[cfg(test)]
pub(crate) mod proxy;
/// Starts the real binary, listens to its log, and leaves no process behind.
#[cfg(test)]
pub(crate) mod runner;
/// The service behind TLS.
#[cfg(test)]
pub(crate) mod secure;
/// The service as the protocol describes it, with every fault a network or a server can have.
#[cfg(test)]
pub(crate) mod server;
/// Where a runner keeps what it must not forget, and the end of all that it started.
#[cfg(test)]
pub(crate) mod state_dir;
/// The few calls to the kernel that the standard library lacks.
#[cfg(test)]
pub(crate) mod sys;
/// TLS before a server, with certificates of one's own.
#[cfg(test)]
pub(crate) mod tls;
/// What a process has used so far.
#[cfg(test)]
pub(crate) mod usage;
/// Waits for what no event tells.
#[cfg(test)]
pub(crate) mod wait;
