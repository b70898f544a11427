//! Where documents come from: plain text, JSON lines, a folder of these, or an embedded text.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::checkpoint::{Builtin, Location};
use crate::{Error, Result};

/// How the documents of one file are written down.
#[derive(Clone, Copy)]
enum Format {
    /// UTF-8, NUL bytes between documents.
    Plain,
    /// One JSON object per line, the document under `"text"`.
    JsonLines,
}

/// Extensions of well-known files that would only give noise or "invalid UTF-8" if they were read as plain text.
const UNREADABLE: [&str; 9] = ["arrow", "bz2", "gz", "json", "parquet", "pdf", "xz", "zip", "zst"];

const FORMATS: &str = "give plain text (.txt, NUL bytes between documents), JSON lines (.jsonl, one {\"text\": ...} per line), \
                       or a folder of these";

/// All documents of a source, in order; none of them is blank, and there is at least one.
///
/// A file is plain UTF-8 text with NUL bytes between documents, or (`.jsonl`, `.ndjson`) JSON lines with a `"text"` each.
/// A folder gives its `.txt`, `.text`, `.md`, `.jsonl` and `.ndjson` files in order of their names; other files and
/// folders inside it are passed over.
pub fn documents(location: &Location) -> Result<Vec<String>> {
    let (name, documents) = match location {
        Location::Path(path) if path.is_dir() => (path.display().to_string(), folder(path)?),
        Location::Path(path) => (path.display().to_string(), file(path)?),
        Location::Builtin(builtin) => (format!("builtin:{}", builtin.name), embedded(builtin)?),
        Location::Hub(id) => {
            let what = "is on the Hub and was not downloaded";
            return Err(Error::text(id.to_string(), what, "`hub::text` downloads it and gives its path"));
        }
    };
    if documents.is_empty() {
        return Err(Error::text(name, "holds no text", "it is empty or blank; name a file with text in it"));
    }
    Ok(documents)
}

fn folder(path: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(path).map_err(Error::io(path, "list it"))?;
    let entries = entries.collect::<std::io::Result<Vec<_>>>().map_err(Error::io(path, "list it"))?;
    let mut files: Vec<(PathBuf, Format)> = entries
        .into_iter()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .filter_map(|path| text_format(&extension(&path)).map(|format| (path, format)))
        .collect();
    if files.is_empty() {
        return Err(Error::text(path.display().to_string(), "is a folder without texts", FORMATS));
    }
    // The order in which a folder is listed differs between file systems.
    files.sort_by(|(a, _), (b, _)| a.cmp(b));

    let mut documents = Vec::new();
    for (path, format) in files {
        documents.extend(read(&path, format)?);
    }
    Ok(documents)
}

fn file(path: &Path) -> Result<Vec<String>> {
    let extension = extension(path);
    if UNREADABLE.contains(&extension.as_str()) {
        return Err(Error::text(path.display().to_string(), format!(".{extension} files are not read"), FORMATS));
    }
    // Who names one file means it, whatever its extension.
    read(path, text_format(&extension).unwrap_or(Format::Plain))
}

fn embedded(builtin: &Builtin) -> Result<Vec<String>> {
    let mut documents = Vec::new();
    for (name, bytes) in builtin.files {
        if let Some(format) = text_format(&extension(Path::new(name))) {
            documents.extend(parse(bytes, format, &format!("builtin:{}/{name}", builtin.name))?);
        }
    }
    if documents.is_empty() {
        let what = "is embedded, but is not a text";
        return Err(Error::text(format!("builtin:{}", builtin.name), what, "name an embedded text or a file"));
    }
    Ok(documents)
}

fn read(path: &Path, format: Format) -> Result<Vec<String>> {
    let bytes = fs::read(path).map_err(Error::io(path, "read it"))?;
    parse(&bytes, format, &path.display().to_string())
}

fn extension(path: &Path) -> String {
    path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default()
}

fn text_format(extension: &str) -> Option<Format> {
    match extension {
        "txt" | "text" | "md" => Some(Format::Plain),
        "jsonl" | "ndjson" => Some(Format::JsonLines),
        _ => None,
    }
}

fn parse(bytes: &[u8], format: Format, name: &str) -> Result<Vec<String>> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let line = 1 + bytes[..at].iter().filter(|&&byte| byte == b'\n').count();
        let what = format!("is not UTF-8: the first invalid byte is byte {at} (counted from 0), on line {line}");
        Error::text(name, what, "convert it to UTF-8, for example with `iconv -t UTF-8`")
    })?;
    // A byte order mark is no part of the text.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = match format {
        Format::Plain => text.split('\0').map(str::to_owned).collect(),
        Format::JsonLines => json_lines(text, name)?,
    };
    documents.retain(|document| !document.trim().is_empty());
    Ok(documents)
}

fn json_lines(text: &str, name: &str) -> Result<Vec<String>> {
    let mut documents = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let mistake = |what: String| {
            let hint = "each line is one JSON object with the document under \"text\"";
            Error::text(name, format!("line {}: {what}", index + 1), hint)
        };
        let mut object: Map<String, Value> =
            serde_json::from_str(line).map_err(|error| mistake(format!("not a JSON object: {error}")))?;
        match object.remove("text") {
            Some(Value::String(text)) => documents.push(text),
            Some(_) => return Err(mistake("\"text\" is not a string".into())),
            None => {
                let keys: Vec<&str> = object.keys().map(String::as_str).take(8).collect();
                return Err(mistake(format!("there is no \"text\" (its keys: {})", keys.join(", "))));
            }
        }
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_extension_of_texts_has_a_format() {
        assert!(crate::checkpoint::TEXTS.iter().all(|extension| text_format(extension).is_some()));
    }
}
