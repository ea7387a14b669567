//! What a model's server takes and does not take.

/// `compat` of openclaw.json, as far as it changes what is sent; `None` = nothing said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compat {
    /// `maxTokensField`: whether it is `max_completion_tokens`.
    pub completion_tokens: Option<bool>,
    /// `supportsDeveloperRole`.
    pub developer: Option<bool>,
    /// `supportsStore`.
    pub store: Option<bool>,
    /// `supportsReasoningEffort`.
    pub effort: Option<bool>,
    /// `supportsTemperature`.
    pub temperature: Option<bool>,
    /// `supportsTools`.
    pub tools: Option<bool>,
    /// `supportsUsageInStreaming`.
    pub usage: Option<bool>,
    /// `requiresStringContent`.
    pub strings: Option<bool>,
}
