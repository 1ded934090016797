//! Completions for bash, zsh and fish: subcommands, their options, and what options take.

use std::fmt::Write as _;

use super::table::{HELP, Kind, Opt, PLACE, SUBCOMMANDS, Subcommand, VERSION, Value};

/// A subcommand may stand behind options, so it is the first word that is one. An option takes the same wherever it is.
pub fn bash() -> String {
    let names: Vec<&str> = SUBCOMMANDS.iter().map(|sub| sub.name).collect();
    let names = names.join(" ");
    let mut text = format!(
        "# bash completion for djangocommand, made by 'djangocommand generate bash'.\n\
         _djangocommand() {{\n    \
             local cur=${{COMP_WORDS[COMP_CWORD]}} sub= word words\n    \
             COMPREPLY=()\n    \
             for word in \"${{COMP_WORDS[@]:1:COMP_CWORD - 1}}\"; do\n        \
                 case $word in {alternatives}) sub=$word; break ;; esac\n    \
             done\n    \
             case ${{COMP_WORDS[COMP_CWORD - 1]}} in\n",
        alternatives = names.replace(' ', "|")
    );
    let all = all_options();
    for opt in &all {
        let Some(value) = opt.value else { continue };
        let reply = match value.kind {
            Kind::Directory => {
                "compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- \"$cur\"); return".to_owned()
            }
            Kind::File => {
                "compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- \"$cur\"); return".to_owned()
            }
            Kind::OneOf(words) => {
                format!("COMPREPLY=($(compgen -W '{}' -- \"$cur\")); return", words.join(" "))
            }
            Kind::Other => "return".to_owned(),
        };
        let short = opt.short.map_or(String::new(), |short| format!(" | -{short}"));
        let _ = writeln!(text, "        --{}{short}) {reply} ;;", opt.long);
    }
    text.push_str("    esac\n    case $sub in\n");
    for sub in SUBCOMMANDS {
        let operand = sub.operand.as_ref().map_or(String::new(), |operand| words_of(operand.value));
        let _ =
            writeln!(text, "        {}) words='{operand}{}' ;;", sub.name, long_names(sub.shown_options()));
    }
    // Before the subcommand, any subcommand's option may be meant.
    let before = long_names(all.into_iter().chain([&VERSION]));
    let _ = write!(
        text,
        "        *) words='{names} help {before}' ;;\n    esac\n    \
         COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}}\ncomplete -F _djangocommand djangocommand\n"
    );
    text
}

/// Each option once, whichever subcommands it belongs to.
fn all_options() -> Vec<&'static Opt> {
    let mut all: Vec<&'static Opt> = Vec::new();
    for opt in SUBCOMMANDS.iter().flat_map(Subcommand::shown_options) {
        if !all.iter().any(|known| known.long == opt.long) {
            all.push(opt);
        }
    }
    all
}

/// What the value can be, with a space behind each.
fn words_of(value: Value) -> String {
    match value.kind {
        Kind::OneOf(words) => words.iter().map(|word| format!("{word} ")).collect(),
        _ => String::new(),
    }
}

fn long_names<'a>(options: impl Iterator<Item = &'a Opt>) -> String {
    options.map(|opt| format!("--{}", opt.long)).collect::<Vec<_>>().join(" ")
}

pub fn zsh() -> String {
    let mut text = String::from(
        "#compdef djangocommand\n# zsh completion for djangocommand, made by 'djangocommand generate zsh'.\n\
         _djangocommand() {\n    local sub=${words[(r)",
    );
    let names: Vec<&str> = SUBCOMMANDS.iter().map(|sub| sub.name).collect();
    let _ = write!(text, "({})]}}\n    case $sub in\n", names.join("|"));
    for sub in SUBCOMMANDS {
        let _ = writeln!(text, "        {}) _arguments \\", sub.name);
        sub.shown_options().for_each(|opt| zsh_option(&mut text, opt));
        let operand = sub.operand.as_ref().map_or(String::new(), |operand| {
            format!(" '2:{}:{}'", operand.value.name, zsh_action(operand.value.kind))
        });
        let _ = writeln!(text, "            '1:subcommand:'{operand} ;;");
    }
    text.push_str("        *) _arguments \\\n");
    // Those of the place, which people put in front.
    PLACE.options.iter().chain([&HELP, &VERSION]).for_each(|opt| zsh_option(&mut text, opt));
    text.push_str("            '1:subcommand:((");
    for sub in SUBCOMMANDS {
        let _ = write!(text, "{}\\:\"{}\" ", sub.name, zsh_text(sub.help));
    }
    text.push_str("))' ;;\n    esac\n}\n_djangocommand \"$@\"\n");
    text
}

fn zsh_option(text: &mut String, opt: &Opt) {
    let about = zsh_text(opt.help);
    let value =
        opt.value.map_or(String::new(), |value| format!(":{}:{}", value.name, zsh_action(value.kind)));
    let _ = match opt.short {
        Some(short) => {
            writeln!(text, "            '(-{short} --{0})'{{-{short},--{0}}}'[{about}]{value}' \\", opt.long)
        }
        None => writeln!(text, "            '--{}[{about}]{value}' \\", opt.long),
    };
}

fn zsh_action(kind: Kind) -> String {
    match kind {
        Kind::Directory => "_files -/".to_owned(),
        Kind::File => "_files".to_owned(),
        Kind::OneOf(words) => format!("({})", words.join(" ")),
        Kind::Other => String::new(),
    }
}

/// What may stand in single quotes, in brackets and in a list of `_arguments`.
fn zsh_text(text: &str) -> String {
    first_sentence(text)
        .chars()
        .flat_map(|c| match c {
            '\'' => "'\\''".chars().collect::<Vec<_>>(),
            ':' | '[' | ']' | '"' | '$' | '`' => vec!['\\', c],
            _ => vec![c],
        })
        .collect()
}

/// Completions have little room.
fn first_sentence(text: &str) -> &str {
    text.split_once(". ").map_or(text, |(first, _)| first).trim_end_matches('.')
}

pub fn fish() -> String {
    let mut text = String::from(
        "# fish completion for djangocommand, made by 'djangocommand generate fish'.\ncomplete -c djangocommand -f\n",
    );
    let names: Vec<&str> = SUBCOMMANDS.iter().map(|sub| sub.name).collect();
    let none = format!("not __fish_seen_subcommand_from {}", names.join(" "));
    for sub in SUBCOMMANDS {
        let about = fish_text(sub.help);
        let _ = writeln!(text, "complete -c djangocommand -n '{none}' -a {} -d '{about}'", sub.name);
    }
    for opt in PLACE.options.iter().chain([&HELP, &VERSION]) {
        fish_option(&mut text, &none, opt);
    }
    for sub in SUBCOMMANDS {
        let seen = format!("__fish_seen_subcommand_from {}", sub.name);
        sub.shown_options().for_each(|opt| fish_option(&mut text, &seen, opt));
        if let Some(words) =
            sub.operand.as_ref().map(|operand| words_of(operand.value)).filter(|w| !w.is_empty())
        {
            let _ = writeln!(text, "complete -c djangocommand -n '{seen}' -a '{}'", words.trim_end());
        }
    }
    text
}

fn fish_option(text: &mut String, condition: &str, opt: &Opt) {
    let short = opt.short.map_or(String::new(), |short| format!(" -s {short}"));
    let value = match opt.value.map(|value| value.kind) {
        None => String::new(),
        Some(Kind::Directory) => " -x -a '(__fish_complete_directories)'".to_owned(),
        Some(Kind::File) => " -r -F".to_owned(),
        Some(Kind::OneOf(words)) => format!(" -x -a '{}'", words.join(" ")),
        Some(Kind::Other) => " -x".to_owned(),
    };
    let about = fish_text(opt.help);
    let _ = writeln!(
        text,
        "complete -c djangocommand -n '{condition}'{short} -l {}{value} -d '{about}'",
        opt.long
    );
}

fn fish_text(text: &str) -> String {
    first_sentence(text).replace('\\', "\\\\").replace('\'', "\\'")
}
