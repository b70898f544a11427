//! As much of HTTP/1.1 as a test needs: one request a connection, bodies with a length or in chunks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

pub struct Request {
    pub method: String,
    /// Decoded, without the query.
    pub path: String,
    pub query: String,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// All but the body; `None` when the client has gone.
    pub fn head(reader: &mut BufReader<&TcpStream>) -> Option<Request> {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|&n| n > 0)?;
        let mut words = line.split_whitespace();
        let (method, target) = (words.next()?.to_string(), words.next()?.to_string());
        let mut headers = vec![];
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|&n| n > 0)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
        }
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        Some(Request { method, path: decoded(path), query: query.to_string(), headers, body: vec![] })
    }

    /// With its body.
    pub fn whole(mut self, reader: &mut BufReader<&TcpStream>) -> Option<Request> {
        if self.header("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
            loop {
                let mut size = String::new();
                reader.read_line(&mut size).ok()?;
                let size = usize::from_str_radix(size.trim().split(';').next()?, 16).ok()?;
                let mut chunk = vec![0; size + 2];
                reader.read_exact(&mut chunk).ok()?;
                if size == 0 {
                    break;
                }
                self.body.extend_from_slice(&chunk[..size]);
            }
        } else if let Some(length) = self.header("content-length").and_then(|value| value.parse().ok()) {
            self.body = vec![0; length];
            reader.read_exact(&mut self.body).ok()?;
        }
        Some(self)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// First byte and the byte after the last of what is asked for, of `length` bytes.
    pub fn range(&self, length: usize) -> Option<(usize, usize)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        let last = if last.is_empty() { length } else { last.parse::<usize>().ok()? + 1 };
        Some((first.parse().ok()?, last.min(length)))
    }
}

fn decoded(path: &str) -> String {
    let (bytes, mut out, mut i) = (path.as_bytes(), vec![], 0);
    while i < bytes.len() {
        let byte = (bytes[i] == b'%').then(|| u8::from_str_radix(path.get(i + 1..i + 3)?, 16).ok()).flatten();
        out.push(byte.unwrap_or(bytes[i]));
        i += if byte.is_some() { 3 } else { 1 };
    }
    String::from_utf8(out).unwrap()
}

pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Response {
        Response { status, headers: vec![], body: body.into() }
    }

    pub fn json(value: serde_json::Value) -> Response {
        Response::new(200, value.to_string()).with("content-type", "application/json")
    }

    /// As the Hub says that something cannot be had.
    pub fn error(status: u16, code: &str, words: &str) -> Response {
        let body = serde_json::json!({ "error": words }).to_string();
        Response::new(status, body).with("x-error-code", code).with("x-error-message", words)
    }

    pub fn with(mut self, name: &str, value: impl ToString) -> Response {
        self.headers.push((name.into(), value.to_string()));
        self
    }

    /// Sends it; only `most` bytes of the body if so told. The length is that of the whole body all the same.
    pub fn send(&self, stream: &mut TcpStream, head_only: bool, most: Option<usize>) {
        let mut text = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", self.status);
        if !self.headers.iter().any(|(name, _)| name == "content-length") {
            text += &format!("content-length: {}\r\n", self.body.len());
        }
        self.headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
        let body = if head_only { 0 } else { most.unwrap_or(usize::MAX).min(self.body.len()) };
        // The client may have gone: then there is nobody to tell.
        let _ = stream.write_all((text + "\r\n").as_bytes());
        let _ = stream.write_all(&self.body[..body]);
        let _ = stream.flush();
    }
}
