//! The Lua scripts that tell wrk what to send, and the line in which it reports.
//!
//! A script holds no data: targets and the pool of body bytes come from files beside it. Everything
//! that can be joined before the run is, so that the load generator is never the slower side.
#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::{Result, ensure};

use super::body::{PIECE_BYTES, STAMP_BYTES};

/// How the report line of a script starts.
pub const REPORT: &str = "perf-report";

/// What a script sends.
#[derive(Debug, Clone, Copy)]
pub struct Script<'a> {
    /// The Host header, as it was signed.
    pub host: &'a str,
    /// A file with one request target a line; requests take them in turn.
    pub targets: &'a Path,
    /// What goes with each.
    pub body: Body<'a>,
}

/// The bodies of a script's requests.
#[derive(Debug, Clone, Copy)]
pub enum Body<'a> {
    /// GET, without a body.
    None,
    /// PUT.
    Put {
        /// Length of the body: at most one piece, or a whole number of them.
        bytes: usize,
        /// A file of [`PIECE_BYTES`] bytes.
        pool: &'a Path,
        /// Tells the bodies of this window from all others.
        window: u32,
    },
}

/// Reads the targets into `targets`.
const READ_TARGETS: &str = "\
local targets = {}
for line in io.lines(TARGETS) do targets[#targets + 1] = line end
";

/// One whole request for each target.
const GET: &str = "\
local requests = {}
for i, target in ipairs(targets) do
  requests[i] = 'GET ' .. target .. ' HTTP/1.1\\r\\nHost: ' .. HOST .. '\\r\\n\\r\\n'
end
local n = 0
request = function()
  n = n + 1
  return requests[(n - 1) % #requests + 1]
end
";

/// One head for each target. A body is a row of pieces, each with a stamp that is never used twice.
const PUT: &str = "\
local pool = assert(io.open(POOL, 'rb')):read('*a')
assert(#pool == PIECE, 'the pool is cut short')
local rest = pool:sub(1, math.min(PIECE, BYTES) - STAMP)
local pieces = math.ceil(BYTES / PIECE)
local heads = {}
for i, target in ipairs(targets) do
  heads[i] = 'PUT ' .. target .. ' HTTP/1.1\\r\\nHost: ' .. HOST ..
    '\\r\\nContent-Length: ' .. BYTES .. '\\r\\n\\r\\n'
end
local n = 0
request = function()
  n = n + 1
  local parts = { heads[(n - 1) % #heads + 1] }
  for piece = 0, pieces - 1 do
    parts[#parts + 1] = string.format('%08x%06x%02x', WINDOW, n, piece)
    parts[#parts + 1] = rest
  end
  return table.concat(parts)
end
";

/// Prints the report, under the name in `REPORT`. Latencies are in microseconds.
pub const DONE: &str = "\
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '%s requests=%d bytes=%d duration_us=%d p50_us=%d p99_us=%d failed=%d\\n', REPORT,
    summary.requests, summary.bytes, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
";

impl Script<'_> {
    /// The script's text.
    pub fn lua(&self) -> Result<String> {
        let mut text = format!(
            "local HOST, TARGETS, REPORT = {}, {}, {}\n",
            quoted(self.host)?,
            quoted_path(self.targets)?,
            quoted(REPORT)?,
        );
        match self.body {
            Body::None => text.extend([READ_TARGETS, GET]),
            Body::Put {
                bytes,
                pool,
                window,
            } => {
                let fits = (STAMP_BYTES..=PIECE_BYTES).contains(&bytes)
                    || (bytes.is_multiple_of(PIECE_BYTES)
                        && (1..=256).contains(&(bytes / PIECE_BYTES)));
                ensure!(fits, "a body of {bytes} bytes cannot be stamped");
                let numbers = format!(
                    "local POOL, BYTES, WINDOW, PIECE, STAMP = {}, {bytes}, {window}, {PIECE_BYTES}, {STAMP_BYTES}\n",
                    quoted_path(pool)?
                );
                text.extend([&numbers, READ_TARGETS, PUT]);
            }
        }
        text.push_str(DONE);
        Ok(text)
    }
}

fn quoted_path(path: &Path) -> Result<String> {
    let Some(text) = path.to_str() else {
        anyhow::bail!(
            "{} is not UTF-8, which the load's script needs",
            path.display()
        );
    };
    quoted(text)
}

/// A Lua string of plain bytes.
fn quoted(text: &str) -> Result<String> {
    let plain = |c: char| !c.is_control() && !matches!(c, '\'' | '\\');
    ensure!(
        text.chars().all(plain),
        "{text:?} has quotes, backslashes or control characters, which the load's script cannot hold"
    );
    Ok(format!("'{text}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(body: Body<'_>) -> Result<String> {
        let targets = Path::new("/t/targets");
        Script {
            host: "127.0.0.1:9",
            targets,
            body,
        }
        .lua()
    }

    fn put(bytes: usize) -> Result<String> {
        script(Body::Put {
            bytes,
            pool: Path::new("/t/pool"),
            window: 12,
        })
    }

    #[test]
    fn a_get_names_its_host_and_its_targets_and_has_no_body() {
        let text = script(Body::None).unwrap();
        assert!(text.starts_with("local HOST, TARGETS, REPORT = '127.0.0.1:9', '/t/targets', "));
        assert!(text.contains("'GET '") && !text.contains("PUT") && !text.contains("pool"));
        assert!(text.contains("done = function"));
    }

    #[test]
    fn a_put_carries_its_length_and_its_window() {
        let text = put(4096).unwrap();
        assert!(
            text.contains("= '/t/pool', 4096, 12, 65536, 16\n"),
            "{text}"
        );
        assert!(text.contains("'PUT '") && !text.contains("'GET '"));
    }

    #[test]
    fn lengths_that_stamps_do_not_cover_are_refused() {
        for bytes in [STAMP_BYTES, PIECE_BYTES, 2 * PIECE_BYTES, 256 * PIECE_BYTES] {
            assert!(put(bytes).is_ok(), "{bytes}");
        }
        for bytes in [0, STAMP_BYTES - 1, PIECE_BYTES + 1, 257 * PIECE_BYTES] {
            assert!(put(bytes).is_err(), "{bytes}");
        }
    }

    #[test]
    fn text_that_would_end_a_lua_string_is_refused() {
        assert_eq!(quoted("/a b/c-d").unwrap(), "'/a b/c-d'");
        for bad in ["'", "\\", "\n", "a\0"] {
            assert!(quoted(bad).is_err(), "{bad:?}");
        }
    }
}
