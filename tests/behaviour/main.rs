//! The real binary against the service and real projects: each file one behaviour, each test one sentence of it.

#[path = "../support/mod.rs"]
mod support;

/// Proves the support itself, against raw sockets and against the published Python runner.
mod support_itself;

/// Configuration: where values come from, what is refused, the command line.
mod configuration;
/// Crashes: kill -9 of runner and shim, and what the next runner makes of it.
mod crashes;
/// The Django side: finding the project and its Python, the probe, what the dashboard is told.
mod django;
/// Executions: policy, order, output, exit codes, timeouts, cancelling.
mod executions;
/// The service: headers, classes of answers, retries, the key, suspension, nonsense.
mod service;
/// Signals: drain, cancel, and the end.
mod signals;
