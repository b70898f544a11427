//! Faults of the Hub and of the network: what was answered instead of what was asked.

use std::time::Duration;

use hf_hub::HFError;
use reqwest::Response;

use crate::Error;
use crate::checkpoint::shown;

/// Longest wait that a Hub may ask for and get.
const MAX_WAIT: Duration = Duration::from_secs(120);

/// Why a request gave nothing.
#[derive(Debug)]
pub(super) enum Fault {
    /// The Hub answered with a status that is no success.
    Answer { status: u16, code: String, words: String, wait: Option<Duration> },
    /// Nothing usable came: no connection, or one that broke.
    Network(String),
    /// An answer that is not what the protocol says.
    Nonsense(String),
    /// Ours to pass on.
    Ours(Error),
}

impl Fault {
    /// Reads an answer that is no success.
    pub async fn of(response: Response) -> Fault {
        let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_string());
        let code = header("x-error-code").unwrap_or_default();
        let wait = header("retry-after").and_then(|value| value.trim().parse().ok()).map(Duration::from_secs);
        let (status, message) = (response.status().as_u16(), header("x-error-message"));
        let body = response.text().await.unwrap_or_default();
        let in_body =
            || Some(serde_json::from_str::<serde_json::Value>(&body).ok()?.get("error")?.as_str()?.to_string());
        // As stores of large files speak.
        let in_xml = || Some(body.split_once("<Message>")?.1.split_once("</Message>")?.0.to_string());
        Fault::Answer { status, code, words: message.or_else(in_body).or_else(in_xml).unwrap_or_default(), wait }
    }

    /// How long to wait before it is worth asking again; `None`: it never is. `usual` is the wait where the Hub names none.
    pub fn wait(&self, usual: Duration) -> Option<Duration> {
        match self {
            Fault::Answer { status: 408 | 429 | 500 | 502 | 503 | 504, wait, .. } => {
                Some(wait.unwrap_or(usual)).filter(|&wait| wait <= MAX_WAIT)
            }
            Fault::Network(_) => Some(usual),
            _ => None,
        }
    }

    /// Whether it is the way to the Hub that is broken, rather than the request.
    pub fn is_network(&self) -> bool {
        matches!(self, Fault::Network(_) | Fault::Answer { status: 500..=599, .. })
    }
}

impl From<reqwest::Error> for Fault {
    fn from(error: reqwest::Error) -> Fault {
        // The address may be signed: it is nobody's business.
        let error = error.without_url();
        let mut what = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            what = cause.to_string();
            source = cause.source();
        }
        if error.is_builder() { Fault::Nonsense(what) } else { Fault::Network(what) }
    }
}

impl From<HFError> for Fault {
    fn from(error: HFError) -> Fault {
        let (context, wait) = match error {
            HFError::RateLimited { retry_after, context } => (context, retry_after),
            HFError::Http { context }
            | HFError::AuthRequired { context }
            | HFError::Forbidden { context }
            | HFError::Conflict { context } => (context, None),
            HFError::RepoNotFound { context: Some(context), .. }
            | HFError::RevisionNotFound { context: Some(context), .. }
            | HFError::EntryNotFound { context: Some(context), .. } => (context, None),
            HFError::Request { source, .. } => return source.into(),
            HFError::Io(source) => return Fault::Ours(Error::io("the files to send", "read them")(source)),
            other => return Fault::Nonsense(shown(&other.to_string())),
        };
        Fault::Answer {
            status: context.status.as_u16(),
            code: context.error_code.unwrap_or_default(),
            words: context.server_message.unwrap_or_default(),
            wait,
        }
    }
}
