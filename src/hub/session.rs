//! The way to the Hub: address, token, and requests that are repeated when that helps.

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LINK, RANGE};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response};
use serde_json::Value;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::fault::Fault;
use crate::checkpoint::shown;
use crate::progress::check_interrupt;
use crate::{Error, Result};

/// How often a request is made before its failure counts.
const ATTEMPTS: u32 = 5;
/// The first wait between two attempts; each next one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Between two looks at whether the user wants to stop.
const TICK: Duration = Duration::from_millis(200);
const CONNECT: Duration = Duration::from_secs(20);
/// A connection on which nothing moves for so long is broken.
const SILENCE: Duration = Duration::from_secs(60);
/// A Hub may be busy for so long with what was sent to it: a commit, or a file to be put together.
const PATIENCE: Duration = Duration::from_secs(300);
/// Entries of a listing that are read; repositories have thousands at most.
const MAX_ENTRIES: usize = 200_000;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// A connection to the Hub that the environment names.
pub(super) struct Session {
    pub endpoint: String,
    /// Never shown, never written.
    pub token: Option<String>,
    pub cache: PathBuf,
    client: Client,
    /// The client that sends: silence while bytes go out is no fault.
    sender: Client,
    runtime: Runtime,
}

impl Session {
    /// The session of this process.
    pub fn get() -> Result<&'static Session> {
        static SESSION: OnceLock<Session> = OnceLock::new();
        match SESSION.get() {
            Some(session) => Ok(session),
            None => {
                let session = Session::new()?;
                Ok(SESSION.get_or_init(|| session))
            }
        }
    }

    fn new() -> Result<Session> {
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.into());
        let endpoint = endpoint.trim_end_matches('/').to_string();
        let scheme = |scheme: &str| endpoint.strip_prefix(scheme).is_some_and(|host| !host.is_empty());
        if !(scheme("https://") || scheme("http://")) || endpoint.chars().any(char::is_whitespace) {
            let what = format!("HF_ENDPOINT is `{}`, which is no address", shown(&endpoint));
            return Err(Error::usage(what, "set it to an address such as https://HOST, or unset it"));
        }
        let broken = |e: &dyn std::fmt::Display| Error::Internal(format!("no client for the Hub: {e}"));
        let agent = concat!("subquad/", env!("CARGO_PKG_VERSION"));
        let client = || Client::builder().user_agent(agent).connect_timeout(CONNECT);
        // What turns a request that sends into one that reads: its success would say nothing.
        let redirect = Policy::custom(|attempt| match attempt.status().as_u16() {
            301..=303 => attempt.stop(),
            _ => Policy::default().redirect(attempt),
        });
        let runtime = Builder::new_current_thread().enable_all().build().map_err(|e| broken(&e))?;
        Ok(Session {
            endpoint,
            token: token(),
            cache: hf_hub::resolve_cache_dir(),
            client: client().read_timeout(SILENCE).build().map_err(|e| broken(&e))?,
            sender: client().redirect(redirect).build().map_err(|e| broken(&e))?,
            runtime,
        })
    }

    /// `hf-hub`'s client with the same address and token; it repeats nothing by itself.
    pub fn hf(&self) -> std::result::Result<hf_hub::HFClient, Fault> {
        let client = hf_hub::HFClient::builder().endpoint(&self.endpoint).retry_max_attempts(0);
        let client = match &self.token {
            Some(token) => client.token(token),
            None => client,
        };
        Ok(client.build()?)
    }

    /// Text from elsewhere, fit to be shown: one line, and without the token, should a server repeat it.
    pub fn clean(&self, text: &str) -> String {
        match &self.token {
            Some(token) => shown(&text.replace(token.as_str(), "[token]")),
            None => shown(text),
        }
    }

    /// JSON from an address below the endpoint.
    pub fn json(&self, path: &str) -> std::result::Result<Value, Fault> {
        let (value, _) = self.repeated(|| self.page(format!("{}/{path}", self.endpoint)))?;
        Ok(value)
    }

    /// The JSON answer to JSON that is sent to an address below the endpoint.
    pub fn post(&self, path: &str, body: &Value) -> std::result::Result<Value, Fault> {
        self.repeated(|| self.submit(path, "application/json", body.to_string()))
    }

    /// One attempt at it, with text of any kind.
    pub async fn submit(&self, path: &str, media: &str, body: String) -> std::result::Result<Value, Fault> {
        let address = format!("{}/{path}", self.endpoint);
        Ok(self.deliver(&address, self.headers(), media, body).await?.json().await?)
    }

    /// Sends text to any address, with these headers alone.
    pub async fn deliver(
        &self,
        address: &str,
        headers: HeaderMap,
        media: &str,
        body: String,
    ) -> std::result::Result<Response, Fault> {
        let request = self.sender.post(address).headers(headers).header(CONTENT_TYPE, media);
        success(request.body(body).timeout(PATIENCE).send().await?).await
    }

    /// A request that puts contents at any address; see [`Session::sent`].
    pub fn put(&self, address: &str) -> RequestBuilder {
        self.sender.put(address)
    }

    /// Waits for the answer to a request as long as `moved` grows, which counts what has gone out.
    pub async fn sent(&self, request: RequestBuilder, moved: &AtomicU64) -> std::result::Result<Response, Fault> {
        let mut work = pin!(request.send());
        loop {
            let before = moved.load(Ordering::Relaxed);
            match timeout(SILENCE, &mut work).await {
                Ok(response) => return success(response?).await,
                Err(_) if moved.load(Ordering::Relaxed) > before => {}
                Err(_) => return Err(Fault::Network(format!("nothing moved for {} s", SILENCE.as_secs()))),
            }
        }
    }

    /// All entries of a listing that comes in pages.
    pub fn pages(&self, path: &str) -> std::result::Result<Vec<Value>, Fault> {
        let (mut all, mut next) = (vec![], Some(format!("{}/{path}", self.endpoint)));
        while let Some(address) = next.take() {
            let (page, more) = self.repeated(|| self.page(address.clone()))?;
            let Value::Array(page) = page else { return Err(Fault::Nonsense("a listing that is none".into())) };
            all.extend(page);
            if all.len() > MAX_ENTRIES {
                return Err(Fault::Nonsense(format!("a listing of more than {MAX_ENTRIES} entries")));
            }
            // Another host would be given the token.
            next = more.filter(|more| more.starts_with(&format!("{}/", self.endpoint)));
        }
        Ok(all)
    }

    /// The bytes of a file from `start`, as they come; `end`, where given, is the byte after the last.
    pub async fn stream(&self, path: &str, start: u64, end: Option<u64>) -> std::result::Result<Response, Fault> {
        let mut request = self.client.get(format!("{}/{path}", self.endpoint)).headers(self.headers());
        let ranged = start > 0 || end.is_some();
        if ranged {
            let last = end.map_or(String::new(), |end| (end - 1).to_string());
            request = request.header(RANGE, format!("bytes={start}-{last}"));
        }
        let response = request.send().await?;
        match response.status().as_u16() {
            206 if ranged => Ok(response),
            // A server without ranges sends all of it.
            200 if start == 0 => Ok(response),
            200..=299 => Err(Fault::Nonsense("a whole file where a part was asked for".into())),
            _ => Err(Fault::of(response).await),
        }
    }

    /// Runs a request to its end, again while that may help.
    pub fn repeated<T, F: Future<Output = std::result::Result<T, Fault>>>(
        &self,
        request: impl FnMut() -> F,
    ) -> std::result::Result<T, Fault> {
        self.watched(request, &mut || {})
    }

    /// The same; `tick` is called from time to time.
    pub fn watched<T, F: Future<Output = std::result::Result<T, Fault>>>(
        &self,
        mut request: impl FnMut() -> F,
        tick: &mut dyn FnMut(),
    ) -> std::result::Result<T, Fault> {
        let mut usual = FIRST_WAIT;
        for _ in 1..ATTEMPTS {
            let fault = match self.run(request(), tick) {
                Ok(value) => return Ok(value),
                Err(fault) => fault,
            };
            let Some(wait) = fault.wait(usual) else { return Err(fault) };
            tracing::debug!(?wait, fault = %self.clean(&format!("{fault:?}")), "the Hub is asked again");
            self.sleep(wait)?;
            usual *= 2;
        }
        self.run(request(), tick)
    }

    /// Waits, unless the user wants to stop.
    pub fn sleep(&self, wait: Duration) -> std::result::Result<(), Fault> {
        let sleep = async {
            tokio::time::sleep(wait).await;
            Ok(())
        };
        self.run(sleep, &mut || {})
    }

    /// Runs work to its end, or until the user wants to stop; `tick` is called from time to time.
    pub fn run<T>(
        &self,
        work: impl Future<Output = std::result::Result<T, Fault>>,
        tick: &mut dyn FnMut(),
    ) -> std::result::Result<T, Fault> {
        self.runtime.block_on(async {
            let mut work = pin!(work);
            loop {
                if let Ok(done) = timeout(TICK, &mut work).await {
                    return done;
                }
                check_interrupt().map_err(Fault::Ours)?;
                tick();
            }
        })
    }

    /// A JSON page, and the address of the next.
    async fn page(&self, address: String) -> std::result::Result<(Value, Option<String>), Fault> {
        let response = success(self.client.get(address).headers(self.headers()).send().await?).await?;
        let next = response.headers().get(LINK).and_then(|link| link.to_str().ok()).and_then(next_page);
        let bytes = response.bytes().await?;
        let value = serde_json::from_slice(&bytes).map_err(|e| Fault::Nonsense(format!("no JSON: {e}")))?;
        Ok((value, next))
    }

    /// The token as the Hub wants it, for addresses below the endpoint.
    pub fn headers(&self) -> HeaderMap {
        let bearer = self.token.as_ref().and_then(|token| HeaderValue::from_str(&format!("Bearer {token}")).ok());
        let mut headers = HeaderMap::new();
        if let Some(mut bearer) = bearer {
            // Logs show such values as secret.
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
        headers
    }
}

async fn success(response: Response) -> std::result::Result<Response, Fault> {
    match response.status().is_success() {
        true => Ok(response),
        false => Err(Fault::of(response).await),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// The token, from where all clients of the Hub look: HF_TOKEN, the file HF_TOKEN_PATH, `token` in HF_HOME.
fn token() -> Option<String> {
    let from_file = |path: PathBuf| std::fs::read_to_string(path).ok();
    if variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some() {
        return None;
    }
    let usual = hf_hub::hf_home().join("token");
    let files = variable("HF_TOKEN_PATH").map(PathBuf::from).into_iter().chain([usual]);
    let mut found = variable("HF_TOKEN").into_iter().chain(files.filter_map(from_file));
    found.find_map(|token| Some(token.trim().to_string()).filter(|token| !token.is_empty()))
}

/// The address behind `rel="next"`.
fn next_page(link: &str) -> Option<String> {
    let part = link.split(',').find(|part| part.contains("rel=\"next\""))?;
    Some(part.split_once('<')?.1.split_once('>')?.0.to_string())
}

/// A part of an address, encoded.
pub(super) fn encoded(text: &str, keep_slashes: bool) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            b'/' if keep_slashes => out.push('/'),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}
