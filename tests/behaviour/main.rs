//! The real binary against the service and real projects: each file one behaviour, each test one sentence of it.

#[path = "../support/mod.rs"]
mod support;
