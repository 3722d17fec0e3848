//! The two text formats.

use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;

/// A text format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// `OpenMetrics` 1.0, which Prometheus asks for.
    OpenMetrics,
    /// The older text format of Prometheus (version 0.0.4), which other collectors and `promtool` read.
    Prometheus,
}

impl Format {
    /// The value of the header `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// The format for a client with this header `Accept`: `OpenMetrics` for one that names it, else the older one, which
    /// everybody reads.
    pub fn accepted(accept: &str) -> Self {
        let names = |part: &str| {
            let kind = part.split(';').next().unwrap_or_default().trim();
            let is_refused = part.split(';').any(|it| matches!(it.trim(), "q=0" | "q=0.0"));
            kind.eq_ignore_ascii_case("application/openmetrics-text") && !is_refused
        };
        if accept.split(',').any(names) { Self::OpenMetrics } else { Self::Prometheus }
    }
}

/// Writes all metrics of a registry, as an answer to a scrape.
pub fn render(registry: &Registry, format: Format) -> String {
    let mut answer = String::new();
    let written = match format {
        Format::OpenMetrics => text::encode(&mut answer, registry),
        Format::Prometheus => prometheus_text::encode(&mut answer, registry),
    };
    written.expect("a string takes all");
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_what_it_can_read() {
        for (accept, want) in [
            (
                "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                Format::OpenMetrics,
            ),
            ("text/plain;q=0.5, Application/OpenMetrics-Text; version=0.0.1", Format::OpenMetrics),
            ("application/openmetrics-text;q=0,text/plain", Format::Prometheus),
            ("text/plain;version=0.0.4", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("", Format::Prometheus),
        ] {
            assert_eq!(Format::accepted(accept), want, "{accept:?}");
        }
    }
}
