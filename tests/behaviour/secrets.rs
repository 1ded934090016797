//! Secrets: what a command prints of keys, passwords and tokens does not leave the host, nor is it written down there.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::project::{Project, django_project, fake_project};
use crate::support::runner::{Runner, Running};
use crate::support::server::{Endpoint, Job, KEY, Server};
use crate::support::wait::eventually;

/// For anything that starts interpreters, on a machine that is busy with other tests.
const WITHIN: Duration = Duration::from_secs(60);
const SECRET: &str = "s3cr\u{e4}t \"of\\ the/host&";
/// Settings with secrets of every kind, and some that only look like one.
const SETTINGS: &str = r#"
SECRET_KEY = 's3cr\u00e4t "of\\ the/host&'
SECRET_KEY_FALLBACKS = ['an-older-secret-key']
DATABASES = {'default': {'ENGINE': 'x', 'PASSWORD': 'db-passw0rd', 'OPTIONS': {'passwd': 'nested-passw0rd'}}}
CACHE_LOCATION = 'redis://worker:c%40che-pw@cache:6379/1,redis://other-passw0rd:second-pw@cache:6379/2'
ASSETS = 'https://cdn.example.com:8443/assets@latest'
SENTRY_DSN = 'https://0123456789abcdef@sentry.example.com/1'
SIGNING = {'JWT_PRIVATE_KEY': '-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END PRIVATE KEY-----\n'}
QUOTED_PASSWORD = "it's-a-\"quoted\"-one"
CONTROL_TOKEN = 'with\x1bcontrol\xa0'
BYTES_SECRET = b'\x9f\x12\xfe01234567'
MAIL_URL = 'smtps://somebody@example.com:mail-passw0rd@smtp.example.com:587'
VAULT_PIN = 'pin-of-the-vault'
AUTH_USER_MODEL = 'auth.User'
EMAIL_HOST_PASSWORD = 'short'
"#;

#[test]
fn every_secret_of_settings_and_environment_is_masked_in_every_form_and_nothing_else_is() {
    let (server, project) = (Server::start(), with_secrets());
    let id = server.enqueue(Job::new("tell"));
    let _runner = start(&project, &server, &[("GITHUB_TOKEN", "ghp_from_the_environment")]);
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    let printed = server.state(|state| state.execution(&id).stdout());
    let expected = "key ********\nraw ********\njson \"********\"\nurl ********\nrepr '********'\nfallback ********\n\
                    database ******** ********\ncache redis://worker:********@cache:6379/1,redis://other-passw0rd:********@cache:6379/2\n\
                    assets 8443/assets\ndecoded ********\n\
                    dsn ********\n1 -----BEGIN PRIVATE KEY-----\n2 ********\n3 ********\n\
                    4 -----END PRIVATE KEY-----\ntoken ********\nshown '********' '********' b'********' ********\n\
                    mail smtps://somebody@example.com:********@smtp.example.com:587\nuser auth.User short pin-of-the-vault\n";
    assert_eq!(printed, expected);
    let files = server.state(|state| state.execution(&id).stderr());
    assert_eq!(files, "Traceback: ********\n");
}

#[test]
fn a_secret_is_masked_however_it_is_cut_by_writes_pauses_and_chunks_and_on_disk_too() {
    let (server, project) = (Server::start(), with_secrets());
    let id = server.enqueue(Job::new("tell_slowly"));
    let runner = start(&project, &server, &[]);
    server.wait_for("the first half", WITHIN, |state| {
        state.execution(&id).stdout().contains("half\n").then_some(())
    });
    // What may be a secret's beginning is held back, and all else is there.
    server.state(|state| assert_eq!(state.execution(&id).stdout(), "Password: half\n"));
    eventually("the shim to have all", || is_anywhere(runner.state_dir().path(), "waiting"));
    for (what, secret) in [("the whole", SECRET), ("a part", &SECRET[..9])] {
        assert!(!is_anywhere(runner.state_dir().path(), secret), "{what} of the secret is on disk");
    }
    project.write("go", "");
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    let printed = server.state(|state| state.execution(&id).stdout());
    assert_eq!(printed, "Password: half\n********\nwaiting\n********");
}

#[test]
fn secrets_are_in_no_argument_list_and_no_file_of_the_runner_and_no_line_of_its_log() {
    let (server, project) = (Server::start(), with_secrets());
    let id = server.enqueue(Job::new("slow").args("100 0.1"));
    let runner = start(&project, &server, &[("DJANGOCOMMAND_API_KEY", KEY)]);
    server.wait_for("a line", WITHIN, |state| state.execution(&id).stdout().contains("line 1").then_some(()));
    let state = runner.state_dir();
    for secret in [SECRET, "db-passw0rd", KEY] {
        for pid in state.processes() {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            assert!(
                !String::from_utf8_lossy(&line).contains(secret),
                "{secret} is in the arguments of {pid}"
            );
        }
        assert!(!is_anywhere(state.path(), secret), "{secret} is in the state directory");
        assert!(!runner.log().contains(secret), "{secret} is in the log");
    }
}

#[test]
fn names_can_be_added_and_masking_can_be_turned_off() {
    for (setting, value, pin, key) in [
        ("DJANGOCOMMAND_REDACT_NAMES", "_pin, other", "********", "********"),
        ("DJANGOCOMMAND_REDACT_OUTPUT", "False", "pin-of-the-vault", SECRET),
    ] {
        let (server, project) = (Server::start(), with_secrets());
        let id = server.enqueue(Job::new("tell"));
        let runner = start(&project, &server, &[(setting, value)]);
        assert_eq!(server.completed(&id, WITHIN).status, "success");
        let printed = server.state(|state| state.execution(&id).stdout());
        assert!(printed.contains(&format!("\nraw {key}\n")), "{printed}");
        assert!(printed.ends_with(&format!("short {pin}\n")), "{printed}");
        assert!(runner.log().contains(&format!("{setting} = {value} (environment)")), "{}", runner.log());
    }
}

#[test]
fn diffsettings_of_a_real_project_and_help_texts_show_no_secret() {
    let (server, project) = (Server::start(), django_project());
    project.settings("DATABASES['default']['PASSWORD'] = 'db-passw0rd'");
    let command = "from django.conf import settings\nfrom django.core.management.base import BaseCommand\n\n\n\
                   class Command(BaseCommand):\n    help = 'connects with ' + settings.DATABASES['default']['PASSWORD']\n\n    \
                   def add_arguments(self, parser):\n        parser.add_argument('--key', default=settings.SECRET_KEY, \
                   help='the key to sign with (default: %(default)s)')\n";
    project.write("polls/management/commands/connect.py", command);
    project.settings("DJANGOCOMMAND_ALLOWED_COMMANDS = ['diffsettings', 'connect']");
    let id = server.enqueue(Job::new("diffsettings"));
    let _runner = start(&project, &server, &[]);
    assert_eq!(server.completed(&id, WITHIN).status, "success");
    let printed = server.state(|state| state.execution(&id).stdout());
    assert!(printed.contains("SECRET_KEY = '********'"), "{printed}");
    assert!(!printed.contains("db-passw0rd") && printed.contains("'PASSWORD': '********'"), "{printed}");
    server.state(|state| {
        let synced = state.of(Endpoint::Sync).next().unwrap().body.to_string();
        assert!(synced.contains("connects with ********") && !synced.contains("db-passw0rd"), "{synced}");
        assert!(synced.contains("(default: ********)") && !synced.contains("django-insecure"), "{synced}");
    });
}

/// Whether a text is in any file of a directory, as it is or as JSON.
fn is_anywhere(directory: &Path, text: &str) -> bool {
    let json = serde_json::to_string(text).unwrap();
    let escaped = json.trim_matches('"');
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        match fs::read_dir(&path) {
            Ok(entries) => left.extend(entries.map(|entry| entry.unwrap().path())),
            Err(_) => {
                let content = fs::read(&path).unwrap_or_default();
                let content = String::from_utf8_lossy(&content);
                if content.contains(text) || content.contains(escaped) {
                    return true;
                }
            }
        }
    }
    false
}

fn start(project: &Project, server: &Server, variables: &[(&str, &str)]) -> Running {
    let runner = Runner::in_project(project).server(server);
    variables.iter().fold(runner, |runner, (name, value)| runner.env(name, value)).start()
}

fn with_secrets() -> Project {
    let project = fake_project();
    project.settings(SETTINGS);
    let commands = fs::read_to_string(project.dir().join("commands.py")).unwrap();
    let told = r#"
def tell():
    import urllib.parse
    from django.conf import settings
    secret = settings.SECRET_KEY
    print("key", os.environ["DJANGOCOMMAND_API_KEY"])
    print("raw", secret)
    print("json", json.dumps(secret))
    print("url", urllib.parse.quote(secret, safe=""))
    print("repr", repr(secret))
    print("fallback", settings.SECRET_KEY_FALLBACKS[0])
    database = settings.DATABASES["default"]
    print("database", database["PASSWORD"], database["OPTIONS"]["passwd"])
    print("cache", settings.CACHE_LOCATION)
    print("assets", "8443/assets")
    print("decoded", "c@che-pw")
    print("dsn", settings.SENTRY_DSN)
    for number, line in enumerate(settings.SIGNING["JWT_PRIVATE_KEY"].splitlines(), 1):
        print(number, line)
    print("token", os.environ.get("GITHUB_TOKEN"))
    shown = settings.QUOTED_PASSWORD, settings.CONTROL_TOKEN, settings.BYTES_SECRET
    print("shown", *map(repr, shown), settings.QUOTED_PASSWORD)
    print("mail", settings.MAIL_URL)
    print("user", settings.AUTH_USER_MODEL, settings.EMAIL_HOST_PASSWORD, settings.VAULT_PIN)
    print("Traceback:", secret, file=sys.stderr)


def tell_slowly():
    from django.conf import settings
    secret = settings.SECRET_KEY.encode()
    _write(1, b"Password: ")
    time.sleep(0.5)
    _write(1, b"half\n" + secret[:10])
    time.sleep(1)
    for byte in secret[10:]:
        _write(1, bytes([byte]))
        time.sleep(0.02)
    _write(1, b"\nwaiting\n" + secret[:12])
    while not os.path.exists("go"):
        time.sleep(0.02)
    _write(1, secret[12:])
"#;
    project.write("commands.py", &format!("{commands}\n{told}"));
    project
}
