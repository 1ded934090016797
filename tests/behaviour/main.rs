//! The real binary against the service and real projects: each file one behaviour, each test one sentence of it.

#[path = "../support/mod.rs"]
mod support;

/// Proves the support itself, against raw sockets and against the published Python runner.
#[cfg(test)]
mod support_itself;

/// Bad moments: many at once, killed half way, odd paths, a removed state directory, a clock that is set.
#[cfg(test)]
mod bad_moments;
/// The catalogue: what the dashboard is told of the project's commands.
#[cfg(test)]
mod catalogue;
/// `check`: what it finds of project, settings, network, key and policy, and what it says to do.
#[cfg(test)]
mod check;
/// The command line: help, usage errors, the state directory.
#[cfg(test)]
mod command_line;
/// `commands`: what may run, by which rule, and how.
#[cfg(test)]
mod commands;
/// Configuration: where values come from, what is refused.
#[cfg(test)]
mod configuration;
/// Crashes: kill -9 of runner and shim, and what the next runner makes of it.
#[cfg(test)]
mod crashes;
/// Detached runners: what `start -d` says and lets go of, their log, and the formats of log lines.
#[cfg(test)]
mod detached;
/// The disk: full, or soon to be.
#[cfg(test)]
mod disk;
/// The Django side: finding the project and its Python, the probe, what the dashboard is told.
#[cfg(test)]
mod django;
/// Endings: timeout, cancel, force, and what a command leaves behind.
#[cfg(test)]
mod endings;
/// `ensure`: one healthy runner, whatever is there before, and silence when it is there already.
#[cfg(test)]
mod ensure;
/// Executions: what is run and what is refused, the surroundings of the process, its exit code.
#[cfg(test)]
mod executions;
/// Failures: classes of answers, retries, the key.
#[cfg(test)]
mod failures;
/// Hand-over: `restart`, a crash, a new binary: the next runner goes on where the last one stopped.
#[cfg(test)]
mod hand_over;
/// A hostile server: every field and every part of an answer as nobody would send it.
#[cfg(test)]
mod hostile;
/// The long run: outages, pauses and amounts of work in the time and number that they have in life.
#[cfg(test)]
mod long_run;
/// Nonsense: answers that are not the service's.
#[cfg(test)]
mod nonsense;
/// Odd commands: those that die talking, leave daemons, change under the runner's eyes, or come by the hundred.
#[cfg(test)]
mod odd_commands;
/// Offers: the pending list, right and wrong entries, never twice.
#[cfg(test)]
mod offers;
/// `start --once`: everything that waits, and then the end.
#[cfg(test)]
mod once;
/// Output: bytes to text, times, chunks, metadata-only.
#[cfg(test)]
mod output;
/// Packaging: what `make install` puts where and takes away again, the completions, the README's reference.
#[cfg(test)]
mod packaging;
/// Proportions: what costs grow with, and what they do not.
#[cfg(test)]
mod proportions;
/// A read-only disk: under a runner that works, and before one can begin.
#[cfg(test)]
mod read_only;
/// The host's own record: `audit.jsonl`, syslog, `history`.
#[cfg(test)]
mod record;
/// Reloading: new settings and commands, by a signal or because files have changed, while work goes on.
#[cfg(test)]
mod reloading;
/// Scarcity: no descriptors, no processes, no time on the processor.
#[cfg(test)]
mod scarcity;
/// Secrets: what a command prints of keys and passwords stays on the host.
#[cfg(test)]
mod secrets;
/// The service: headers, connections, what heartbeats and polls bring about, suspension, outages.
#[cfg(test)]
mod service;
/// Signals: drain, cancel, and the end.
#[cfg(test)]
mod signals;
/// A host that sleeps: nothing moves for hours, and then the time of day is another.
#[cfg(test)]
mod sleep;
/// Status: what it shows of a runner in each of its states, and that it disturbs nobody.
#[cfg(test)]
mod status;
/// Stopping: `stop`, gently and by force, and whom it never touches.
#[cfg(test)]
mod stopping;
/// Supervision: what systemd is told, and what a runner does for its children as process 1 of a container.
#[cfg(test)]
mod supervision;
/// Torrents: lines without end, lines without text, and much over a slow line, in little memory.
#[cfg(test)]
mod torrents;
/// Transport: certificates, proxies, redirects.
#[cfg(test)]
mod transport;
/// Trust: arguments that choose code, keys in files, what other processes may see.
#[cfg(test)]
mod trust;
/// An unreliable service: away for a while, its answers lost, its clock another.
#[cfg(test)]
mod unreliable;
