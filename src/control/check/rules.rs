//! What policy permits here, and what of that somebody may not have thought of.

use std::collections::BTreeSet;

use super::host::Known;
use super::{Finding, Report};
use crate::execution::quoted;
use crate::gather::gather;
use crate::near;
use crate::policy::{DEFAULT_ALLOWED, DEFAULT_DISALLOWED, Mode, Policy};

/// What well-known commands do with what they are given, where the names of their options do not show it.
const KNOWN: &[(&str, &str)] = &[
    ("test", "it imports and runs the code of whatever directory it is given"),
    ("sendtestemail", "it sends mail to whatever address it is given"),
    ("shell", "it runs whatever code it is given"),
    ("runscript", "it runs whatever module it is given"),
];

/// Looks at the rules, and what they mean for the commands that the project has.
pub(super) fn look_at(known: &Known, report: &mut Report) {
    let policy = &known.config.policy;
    let found = known.facts.names();
    let allowed: BTreeSet<&str> =
        gather(found.iter().map(String::as_str).filter(|name| policy.admits(name).is_ok()));
    report.add(how_many(policy, allowed.len(), found.len()));
    for (setting, name) in named(policy).filter(|(_, name)| !found.contains(*name)) {
        let near = near::hint(name, found.iter().map(String::as_str), "");
        report.add(Finding::warn(
            "policy",
            format!(
                "{}{setting} names {}, which the project does not have{near}",
                policy.prefix,
                quoted(name)
            ),
            format!("correct it or take it out of {}{setting}", policy.prefix),
        ));
    }
    for why in &known.catalogue.broken {
        report.add(Finding::warn(
            "policy",
            format!("a command does not load: {why}"),
            format!("mend it, or {}", forbid(policy)),
        ));
    }
    for name in &allowed {
        look_at_command(name, known, report);
    }
    for name in policy.bound.keys().filter(|name| found.contains(*name) && !allowed.contains(name.as_str())) {
        let text = format!("{} is bound to certain arguments, but may not run at all", quoted(name));
        report.add(Finding::warn("policy", text, "allow it, or take it out of BOUND_COMMANDS"));
    }
}

fn how_many(policy: &Policy, allowed: usize, found: usize) -> Finding {
    let text = format!("{allowed} of the project's {found} commands may run");
    match &policy.mode {
        _ if allowed == 0 => {
            let next = format!(
                "allow some in {}ALLOWED_COMMANDS ('@default' stands for the default list)",
                policy.prefix
            );
            Finding::warn("policy", text, next)
        }
        Mode::Allowlist(_) => Finding::ok("policy", format!("{text}: those that are listed")),
        Mode::Blocklist(_) => Finding::ok("policy", format!("{text}: all that are not listed, new ones too")),
    }
}

/// What keeps a command from running.
fn forbid(policy: &Policy) -> String {
    match &policy.mode {
        Mode::Allowlist(_) => format!("leave it out of {}ALLOWED_COMMANDS", policy.prefix),
        Mode::Blocklist(_) => format!("add it to {}DISALLOWED_COMMANDS", policy.prefix),
    }
}

/// Every name that a setting has, but for those of the default lists, which are made for all projects.
fn named(policy: &Policy) -> impl Iterator<Item = (&'static str, &str)> {
    let (setting, list, default) = match &policy.mode {
        Mode::Allowlist(list) => ("ALLOWED_COMMANDS", list, DEFAULT_ALLOWED),
        Mode::Blocklist(list) => ("DISALLOWED_COMMANDS", list, DEFAULT_DISALLOWED),
    };
    let listed =
        list.iter().filter(|name| !default.contains(&name.as_str())).map(move |name| (setting, name));
    let metadata_only = policy.metadata_only.iter().map(|name| ("METADATAONLY_COMMANDS", name));
    let bound = policy.bound.keys().map(|name| ("BOUND_COMMANDS", name));
    listed.chain(metadata_only).chain(bound).map(|(setting, name)| (setting, name.as_str()))
}

fn look_at_command(name: &str, known: &Known, report: &mut Report) {
    let policy = &known.config.policy;
    if let Some(choices) = policy.bound.get(name) {
        let choices: Vec<String> = choices.iter().map(|choice| choice.label_and_args()).collect();
        report.add(Finding::ok("policy", format!("{name} may run with exactly: {}", choices.join(" | "))));
        return;
    }
    let mut chooses: Vec<String> = known.catalogue.parsers.get(name).map_or_else(Vec::new, |parser| {
        let chosen = parser.chosen.iter().filter(|option| !policy.refuses_option(name, option));
        chosen.cloned().collect()
    });
    let known_for = KNOWN.iter().find(|(known, _)| *known == name).map(|(_, what)| *what);
    let what = match known_for {
        Some(what) => what.to_owned(),
        None if chooses.is_empty() => return,
        None => {
            chooses.truncate(5);
            format!("its arguments may name files or code ({})", chooses.join(", "))
        }
    };
    report.add(Finding::warn(
        "policy",
        format!("{name} may run with any arguments, and {what}"),
        format!("bind it to certain arguments in {}BOUND_COMMANDS, or {}", policy.prefix, forbid(policy)),
    ));
}
