//! The certificates that the server's must be signed by: those built in, or those of a file or a directory.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ureq::tls::{Certificate, PemItem, RootCerts};

use crate::config::CaBundle;

/// The largest file that is read, in bytes: twenty times all that a distribution ships.
const FILE_MAX: u64 = 4 * 1024 * 1024;
/// The most entries of a directory that are looked at.
const ENTRIES_MAX: usize = 4096;
/// The most different certificates that are kept. Each takes about 2 KiB of memory.
const CERTIFICATES_MAX: usize = 4096;
/// How a certificate begins. Files of a directory without it are left out: keys, lists, notes.
const MARK: &[u8] = b"-----BEGIN CERTIFICATE-----";

/// Reads the roots, and says what they are called in messages.
///
/// # Errors
/// The bundle cannot be read, or something in it is no certificate, or there is none.
pub(super) fn read(bundle: Option<&CaBundle>) -> Result<(RootCerts, String), String> {
    let Some(CaBundle { path, named_by }) = bundle else {
        return Ok((RootCerts::WebPki, "the built-in roots".to_owned()));
    };
    let found = certificates(Path::new(path)).map_err(|why| {
        format!("the certificates in '{path}', which {named_by} names, cannot be used: {why}")
    })?;
    let name = format!("the {} certificate(s) in '{path}' ({named_by})", found.len());
    let found: Vec<Certificate<'static>> =
        found.iter().map(|der| Certificate::from_der(der).to_owned()).collect();
    Ok((RootCerts::new_with_certs(&found), name))
}

/// The different certificates of a file, or of all files of a directory, in DER.
fn certificates(path: &Path) -> Result<BTreeSet<Vec<u8>>, String> {
    let kind = fs::metadata(path).map_err(|e| e.to_string())?;
    let mut found = BTreeSet::new();
    if kind.is_dir() {
        for file in files_in(path).map_err(|e| e.to_string())? {
            // Its name is in the message, since it is not the one that the user wrote.
            add_file(&file, true, &mut found).map_err(|why| format!("'{}': {why}", file.display()))?;
        }
    } else if kind.is_file() {
        add_file(path, false, &mut found)?;
    } else {
        return Err("it is neither a file nor a directory".to_owned());
    }
    if found.is_empty() {
        return Err("no certificate in PEM form is there".to_owned());
    }
    Ok(found)
}

/// The regular files of a directory, sorted, also through links: `/etc/ssl/certs` is made of links, and some may lead
/// nowhere.
fn files_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for (count, entry) in fs::read_dir(directory)?.enumerate() {
        if count == ENTRIES_MAX {
            return Err(io::Error::other(format!("it has more than {ENTRIES_MAX} entries")));
        }
        let path = entry?.path();
        if fs::metadata(&path).is_ok_and(|found| found.is_file()) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn add_file(path: &Path, is_one_of_many: bool, found: &mut BTreeSet<Vec<u8>>) -> Result<(), String> {
    let mut pem = Vec::new();
    let file = File::open(path).map_err(|e| e.to_string())?;
    file.take(FILE_MAX + 1).read_to_end(&mut pem).map_err(|e| e.to_string())?;
    if is_one_of_many && !pem.windows(MARK.len()).any(|window| window == MARK) {
        return Ok(());
    }
    if pem.len() as u64 > FILE_MAX {
        return Err(format!("it has more than {FILE_MAX} bytes"));
    }
    for item in ureq::tls::parse_pem(&pem) {
        let item = item.map_err(|e| format!("what it holds is no PEM: {e}"))?;
        let PemItem::Certificate(certificate) = item else { continue };
        if !is_one_sequence(certificate.der()) {
            return Err("what stands between BEGIN CERTIFICATE and END CERTIFICATE is none".to_owned());
        }
        found.insert(certificate.der().to_vec());
        if found.len() > CERTIFICATES_MAX {
            return Err(format!("there are more than {CERTIFICATES_MAX} certificates"));
        }
    }
    Ok(())
}

/// Whether these bytes are one sequence in DER and nothing else, as every certificate is (X.690, 8.1). What is none
/// would later be left out without a word.
fn is_one_sequence(der: &[u8]) -> bool {
    const SEQUENCE: u8 = 0x30;
    const LONG_FORM: u8 = 0x80;
    let [SEQUENCE, first, rest @ ..] = der else { return false };
    let (length, rest) = if *first < LONG_FORM {
        (usize::from(*first), rest)
    } else {
        // Four bytes of length are more than a file may have.
        let count = usize::from(first - LONG_FORM);
        let Some((digits, rest)) = rest.split_at_checked(count).filter(|_| (1..=4).contains(&count)) else {
            return false;
        };
        (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
    };
    rest.len() == length
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[0x30, 0]` and `[0x30, 1, 0]` are sequences, `aGVsbG8=` is the text "hello".
    const ONE: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    const TWO: &str = "-----BEGIN CERTIFICATE-----\nMAEA\n-----END CERTIFICATE-----\n";
    const NONE: &str = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
    const BROKEN: &str = "-----BEGIN CERTIFICATE-----\n<html>\n-----END CERTIFICATE-----\n";

    #[test]
    fn a_file_gives_its_different_certificates_and_a_directory_those_of_all_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let count = |name: &str| certificates(&path(name)).map(|found| found.len());
        fs::create_dir(path("d")).unwrap();
        assert_eq!(count("d"), Err("no certificate in PEM form is there".to_owned()));
        fs::write(path("two"), format!("# Issuer: somebody\n{ONE}\ntext between\n{TWO}{ONE}")).unwrap();
        assert_eq!(count("two"), Ok(2));
        for (name, text) in
            [("d/a.pem", TWO), ("d/README", "read me"), ("d/key", "-----BEGIN PRIVATE KEY-----")]
        {
            fs::write(path(name), text).unwrap();
        }
        fs::create_dir(path("d/sub")).unwrap();
        std::os::unix::fs::symlink(path("two"), path("d/9d2.0")).unwrap();
        std::os::unix::fs::symlink(path("gone"), path("d/dangling.pem")).unwrap();
        assert_eq!(count("d"), Ok(2));
        for wrong in [NONE, BROKEN, &ONE[..40]] {
            fs::write(path("d/b.pem"), format!("{ONE}{wrong}")).unwrap();
            let why = count("d").unwrap_err();
            assert!(why.contains("/d/b.pem': what "), "{why}");
            assert!(count("d/b.pem").unwrap_err().starts_with("what "));
        }
    }

    #[test]
    fn what_cannot_be_read_or_holds_no_certificate_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle");
        assert!(certificates(&path).unwrap_err().contains("No such file"));
        fs::write(&path, "").unwrap();
        assert_eq!(certificates(&path).unwrap_err(), "no certificate in PEM form is there");
        File::create(&path).unwrap().set_len(FILE_MAX + 1).unwrap();
        assert_eq!(certificates(&path).unwrap_err(), format!("it has more than {FILE_MAX} bytes"));
        assert_eq!(certificates(Path::new("/dev/zero")).unwrap_err(), "it is neither a file nor a directory");
    }

    #[test]
    fn a_sequence_has_the_length_that_it_says() {
        let long = [&[0x30, 0x81, 0x80][..], &[0; 128]].concat();
        for sequence in [&[0x30, 0][..], &[0x30, 1, 7], &long] {
            assert!(is_one_sequence(sequence), "{sequence:?}");
        }
        let longer = [&long[..], &[0]].concat();
        for other in [&[][..], &[0x30], &[0x31, 0], &[0x30, 1], &[0x30, 0x80], &[0x30, 0xff, 1], &longer] {
            assert!(!is_one_sequence(other), "{other:?}");
        }
    }
}
