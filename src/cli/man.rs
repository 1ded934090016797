//! The man page `djangocommand(1)`, in the macros of man(7).

use std::fmt::Write as _;

use super::table::{ABOUT, EXITS, GROUPS, HELP, Opt, SIGNALS, SUBCOMMANDS, Subcommand, VERSION};

const FILES: &[(&str, &str)] = &[
    ("manage.py", "What makes a directory a project; looked for in the working directory and above it."),
    ("/var/lib/djangocommand/PROJECT/.state, ~/.local/state/djangocommand/PROJECT/.state", STATE_DIRECTORY),
    (
        "/etc/djangocommand/PROJECT.env",
        "Environment variables of a runner under systemd, one NAME=value a line (/etc/djangocommand/srv/app.env for \
         /srv/app). It may be missing.",
    ),
    (
        "/etc/djangocommand/PROJECT.key",
        "The API key of a runner under systemd, if it is in no setting. It may be missing.",
    ),
];

const STATE_DIRECTORY: &str = "The state directory of the project with the path /PROJECT. In it runner.lock is \
     locked by the runner, runner.log is the log of a detached one, audit.jsonl is the record of what was asked of this \
     host and what became of it, and executions/ID is an execution until the service has the whole of it.";

const ENVIRONMENT: &[(&str, &str)] = &[
    (
        "DJANGOCOMMAND_SETTING",
        "Overrides the Django setting of that name: DJANGOCOMMAND_API_KEY, DJANGOCOMMAND_API_KEY_FILE, \
         DJANGOCOMMAND_SERVER_URL, DJANGOCOMMAND_ALLOWED_COMMANDS and all others that the README lists. djangocommand \
         check shows each of them with its value and where that is from.",
    ),
    ("DJANGOCOMMAND_STATE_DIR, STATE_DIRECTORY, XDG_STATE_HOME", "Where state is kept: see --state-dir."),
    ("DJANGO_SETTINGS_MODULE, VIRTUAL_ENV, CONDA_PREFIX", "Which settings and which Python the project has."),
    ("HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY", "As for Python's requests, in lower case too."),
    (
        "REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE, SSL_CERT_FILE",
        "Certificates, unless DJANGOCOMMAND_CA_BUNDLE names them.",
    ),
    ("NO_COLOR", "If it is not empty, nothing is coloured."),
];

pub fn page() -> String {
    let mut page = format!(
        ".TH DJANGOCOMMAND 1 \"\" \"djangocommand {}\" \"User Commands\"\n.SH NAME\ndjangocommand \\- run, schedule and audit \
         Django management commands without SSH\n.SH SYNOPSIS\n.B djangocommand\n.I SUBCOMMAND\n[\\fIOPTIONS\\fR]\n\
         .SH DESCRIPTION\n{}\nWithout a subcommand it is\n.BR status .\nOptions may also stand in front of the subcommand.\n\
         .SH SUBCOMMANDS\n",
        env!("CARGO_PKG_VERSION"),
        escaped(ABOUT)
    );
    SUBCOMMANDS.iter().for_each(|sub| subcommand(&mut page, sub));
    page.push_str(".SH OPTIONS\n");
    for group in GROUPS {
        let _ = writeln!(page, ".SS {}", group.title);
        group.options.iter().for_each(|opt| option(&mut page, opt));
    }
    page.push_str(".SS Options of all\n");
    [&HELP, &VERSION].into_iter().for_each(|opt| option(&mut page, opt));
    page.push_str(".SH EXIT STATUS\n");
    EXITS.iter().for_each(|(code, meaning)| term(&mut page, &code.to_string(), meaning));
    for (section, terms) in [("SIGNALS", SIGNALS), ("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES)] {
        let _ = writeln!(page, ".SH {section}");
        terms.iter().for_each(|(name, about)| term(&mut page, name, about));
    }
    page.push_str(".SH SEE ALSO\n.BR django\\-admin (1),\n.BR systemd\\-escape (1)\n");
    page
}

fn subcommand(page: &mut String, sub: &Subcommand) {
    let _ = writeln!(page, ".SS {}\n{}", escaped(&sub.usage()), escaped(sub.help));
    sub.options.iter().filter(|opt| opt.is_shown()).for_each(|opt| option(page, opt));
    if !sub.groups.is_empty() {
        let titles: Vec<&str> = sub.groups.iter().map(|group| group.title).collect();
        let _ =
            writeln!(page, ".PP\nIt takes {}: see OPTIONS.", titles.join(", ").replace("Options", "options"));
    }
    for note in sub.notes {
        let _ = match note.strip_prefix("    ") {
            Some(example) => writeln!(page, ".PP\n.RS 4\n.nf\n{}\n.fi\n.RE", escaped(example)),
            None => writeln!(page, ".PP\n{}", escaped(note)),
        };
    }
    for (code, meaning) in sub.exits {
        term(page, &format!("exit {code}"), meaning);
    }
}

fn option(page: &mut String, opt: &Opt) {
    let short = opt.short.map_or(String::new(), |short| format!("-{short}, "));
    let value = opt.value.map_or(String::new(), |value| format!(" \\fI{}\\fR", escaped(value.name)));
    let name = escaped(&format!("{short}--{}", opt.long));
    let _ = writeln!(page, ".TP\n\\fB{name}\\fR{value}\n{}", escaped(opt.help));
}

fn term(page: &mut String, name: &str, about: &str) {
    let _ = writeln!(page, ".TP\n\\fB{}\\fR\n{}", escaped(name), escaped(about));
}

/// Text that roff shows as it is: a hyphen can be copied, and no line begins like a request.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    match text.strip_prefix(['.', '\'']) {
        Some(_) => format!("\\&{text}"),
        None => text,
    }
}
