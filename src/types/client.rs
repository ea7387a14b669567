//! Which program asks, by family: answers to an agent are as long as an agent's are.

/// The family of a client.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum ClientKind {
    /// OpenClaw.
    Openclaw,
    /// Open WebUI.
    OpenWebui,
    /// `ollama run`.
    OllamaCli,
    /// Claude Code.
    Claude,
    /// A program over one of the usual libraries.
    Sdk,
    /// Anything else, and who says nothing.
    #[default]
    Other,
}

impl ClientKind {
    /// All families, in the order of their numbers.
    pub const ALL: [ClientKind; 6] = [
        ClientKind::Openclaw,
        ClientKind::OpenWebui,
        ClientKind::OllamaCli,
        ClientKind::Claude,
        ClientKind::Sdk,
        ClientKind::Other,
    ];

    /// From what a `User-Agent` says of itself. Nothing depends on its being true but a guess
    /// at the length of an answer.
    pub fn of_agent(agent: &str) -> ClientKind {
        // OpenClaw leaves its HTTP library's own name in place.
        const FAMILIES: [(&str, ClientKind); 16] = [
            ("openclaw", ClientKind::Openclaw),
            ("undici", ClientKind::Openclaw),
            ("open-webui", ClientKind::OpenWebui),
            ("open webui", ClientKind::OpenWebui),
            ("ollama/", ClientKind::OllamaCli),
            ("claude", ClientKind::Claude),
            ("ollama-", ClientKind::Sdk),
            ("openai/", ClientKind::Sdk),
            ("asyncopenai/", ClientKind::Sdk),
            ("anthropic/", ClientKind::Sdk),
            ("asyncanthropic/", ClientKind::Sdk),
            ("litellm", ClientKind::Sdk),
            ("langchain", ClientKind::Sdk),
            ("python", ClientKind::Sdk),
            ("node", ClientKind::Sdk),
            ("go-http-client", ClientKind::Sdk),
        ];
        let starts = |word: &str| {
            let start = agent.as_bytes().get(..word.len());
            start.is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()))
        };
        FAMILIES.iter().find(|(word, _)| starts(word)).map_or(ClientKind::Other, |(_, kind)| *kind)
    }

    /// Its number: the place in [`ClientKind::ALL`].
    pub const fn number(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_known_by_what_they_were_seen_to_say() {
        for (agent, expect) in [
            ("undici", ClientKind::Openclaw),
            ("OpenClaw/2026.9.6", ClientKind::Openclaw),
            ("open-webui/0.6", ClientKind::OpenWebui),
            ("ollama/0.32.15 (amd64 linux) Go/go1.26.8", ClientKind::OllamaCli),
            ("claude-cli/2.0.1 (external, cli)", ClientKind::Claude),
            ("ollama-python/0.6.3 (x86_64 linux) Python/3.11.7", ClientKind::Sdk),
            ("ollama-js/0.6.4 (x64 linux Node.js/v20.20.2)", ClientKind::Sdk),
            ("OpenAI/Python 3.52.0", ClientKind::Sdk),
            ("Anthropic/JS 0.125.0", ClientKind::Sdk),
            ("Python/3.11 aiohttp/3.9", ClientKind::Sdk),
            ("curl/8.5.0", ClientKind::Other),
            ("", ClientKind::Other),
            ("é", ClientKind::Other),
        ] {
            assert_eq!(ClientKind::of_agent(agent), expect, "{agent}");
        }
    }

    #[test]
    fn numbers_are_places_in_the_list() {
        for (i, kind) in ClientKind::ALL.into_iter().enumerate() {
            assert_eq!(kind.number(), i);
        }
    }
}
