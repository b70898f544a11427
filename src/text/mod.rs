//! From text to training data: sources of documents, tokenizer, windows of token ids.
//!
//! ```text
//! Location --documents--> Vec<String> --tokenize--> Vec<u32> --Windows--> [B, T] batches
//! ```

mod decoder;
mod source;
mod split;
mod tokenize;
mod tokenizer;
mod windows;

pub use decoder::StreamDecoder;
pub use source::documents;
pub use tokenize::tokenize;
pub use tokenizer::Tokenizer;
pub use windows::Windows;
