//! Names of files that an export writes.

/// The model card.
pub(super) const CARD: &str = "README.md";
/// How text is generated: ends of text, sampling.
pub(super) const GENERATION: &str = "generation_config.json";
/// The folder of an export that holds its adapter.
pub const ADAPTER: &str = "adapter";
pub(super) const ADAPTER_CONFIG: &str = "adapter_config.json";
pub(super) const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
