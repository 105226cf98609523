//! The table `[serve]`: where metrics and the status page are served.

use std::net::{Ipv4Addr, SocketAddr};

use serde::Deserialize;

/// Where, and whether.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeConfig {
    /// `None`: nowhere.
    pub listen: Option<SocketAddr>,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self { listen: Some((Ipv4Addr::LOCALHOST, PORT).into()) }
    }
}

const PORT: u16 = 9976;
const OFF: &str = "off";

/// As it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawServe {
    listen: Option<String>,
}

impl RawServe {
    /// Checks it.
    ///
    /// # Errors
    /// The key, and what is allowed.
    pub fn check(&self) -> Result<ServeConfig, (&'static str, String)> {
        let Some(text) = &self.listen else { return Ok(ServeConfig::default()) };
        if text == OFF {
            return Ok(ServeConfig { listen: None });
        }
        let allowed = |_| {
            (
                "serve.listen",
                format!("'{text}': write an IP address and a port, 127.0.0.1:{PORT}, or \"{OFF}\""),
            )
        };
        Ok(ServeConfig { listen: Some(text.parse().map_err(allowed)?) })
    }
}
