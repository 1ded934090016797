//! `commands`: what the dashboard will see of the project's commands, and why the others may not run.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::project::{Project, django_project, fake_project_with_settings};
use crate::support::runner::{Ended, Runner};
use crate::support::server::KEY;

/// For what starts an interpreter.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn each_command_is_shown_with_its_app_and_the_rule_that_allows_or_forbids_it() {
    let project = django_project();
    project.settings(
        "DJANGOCOMMAND_ALLOWED_COMMANDS = ['check', 'migrate', 'slow_both']\n\
         DJANGOCOMMAND_METADATAONLY_COMMANDS = ['check']\n\
         DJANGOCOMMAND_BOUND_COMMANDS = {'migrate': ['--plan', {'args': '', 'label': 'All'}]}",
    );
    let rows = rows(&project);
    let of = |name: &str| rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    let allowed = "it is in DJANGOCOMMAND_ALLOWED_COMMANDS";
    assert_eq!(
        *of("check"),
        json!({"name": "check", "app": "django.core", "allowed": true, "rule": allowed, "bound_args": null,
            "metadata_only": true})
    );
    assert_eq!(
        *of("migrate"),
        json!({"name": "migrate", "app": "django.core", "allowed": true, "rule": allowed, "metadata_only": false,
            "bound_args": [{"args": "--plan", "label": "--plan"}, {"args": "", "label": "All"}]})
    );
    assert_eq!(of("slow_both")["app"], "polls");
    let flush = of("flush");
    assert_eq!(
        (&flush["allowed"], &flush["rule"]),
        (&json!(false), &json!("it is not in DJANGOCOMMAND_ALLOWED_COMMANDS"))
    );
    let ended = commands(&project).run_to_end(SOON);
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let lines: Vec<String> =
        ended.stdout.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines[0], "RUNS NAME APP RULE");
    assert_eq!(lines[1], "yes check django.core in DJANGOCOMMAND_ALLOWED_COMMANDS; metadata only");
    assert_eq!(lines[2], "yes migrate django.core in DJANGOCOMMAND_ALLOWED_COMMANDS; only with '--plan', ''");
    assert!(
        lines.contains(&"no flush django.core not in DJANGOCOMMAND_ALLOWED_COMMANDS".to_owned()),
        "{lines:#?}"
    );
    assert_eq!(
        *lines.last().unwrap(),
        format!("3 of the {} commands of '{}' may run", rows.len(), project.dir().display())
    );
}

#[test]
fn in_blocklist_mode_the_rule_is_the_other_list() {
    let project = fake_project_with_settings(
        "DJANGOCOMMAND_USE_BLOCKLIST = True\nDJANGOCOMMAND_DISALLOWED_COMMANDS = ['echo']",
    );
    let rows = rows(&project);
    let rule = |name: &str| {
        rows.iter().find(|row| row["name"] == name).map(|row| (row["allowed"].clone(), row["rule"].clone()))
    };
    assert_eq!(rule("echo"), Some((json!(false), json!("it is in DJANGOCOMMAND_DISALLOWED_COMMANDS"))));
    assert_eq!(rule("slow"), Some((json!(true), json!("it is not in DJANGOCOMMAND_DISALLOWED_COMMANDS"))));
    // Those that may run come first.
    assert!(rows.is_sorted_by_key(|row| row["allowed"] != true));
}

#[test]
fn a_project_or_a_setting_that_is_broken_is_said_as_start_says_it() {
    let ended = commands(&fake_project_with_settings("raise RuntimeError('no')")).run_to_end(SOON);
    assert_eq!((ended.code(), &*ended.stdout), (Some(1), ""), "{ended:?}");
    assert!(
        ended.stderr.starts_with("djangocommand: the project does not load: RuntimeError: no\n"),
        "{ended:?}"
    );
    let ended = commands(&fake_project_with_settings("DJANGOCOMMAND_MAX_RETRIES = -1")).run_to_end(SOON);
    assert_eq!(ended.code(), Some(78), "{ended:?}");
    assert!(ended.stderr.starts_with("djangocommand: DJANGOCOMMAND_MAX_RETRIES is '-1'"), "{ended:?}");
}

fn commands(project: &Project) -> Runner<'_> {
    Runner::in_project(project).subcommand("commands").env("DJANGOCOMMAND_API_KEY", KEY)
}

fn rows(project: &Project) -> Vec<Value> {
    let ended: Ended = commands(project).arg("--json").run_to_end(SOON);
    assert!(ended.code() == Some(0) && ended.stderr.is_empty(), "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap()
}
