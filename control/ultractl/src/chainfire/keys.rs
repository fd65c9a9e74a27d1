//! `ultractl chainfire get|put|del|watch`.

use anyhow::Result;
use bytes::Bytes;
use clap::Args;
use etcd_wire::etcdserverpb::kv_client::KvClient;
use etcd_wire::etcdserverpb::watch_client::WatchClient;
use etcd_wire::etcdserverpb::watch_request::RequestUnion;
use etcd_wire::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, WatchCreateRequest, WatchRequest,
};
use etcd_wire::mvccpb::event::EventType;
use etcd_wire::mvccpb::{Event, KeyValue};

use super::{Session, failed};
use crate::failure::{Exit, Failure};
use crate::output::{Format, show, show_next};

#[derive(Debug, Args)]
pub struct Get {
    /// The key.
    key: String,
    /// All keys that begin so.
    #[arg(long)]
    prefix: bool,
    /// As of this revision; now, when 0.
    #[arg(long, default_value_t = 0)]
    rev: i64,
    /// From the asked member's own state, which may be old.
    #[arg(long)]
    local: bool,
}

#[derive(Debug, Args)]
pub struct Put {
    /// The key.
    key: String,
    /// The value.
    value: String,
    /// The lease that the key hangs on, in hexadecimal.
    #[arg(long)]
    lease: Option<String>,
}

#[derive(Debug, Args)]
pub struct Del {
    /// The key.
    key: String,
    /// All keys that begin so.
    #[arg(long)]
    prefix: bool,
}

#[derive(Debug, Args)]
pub struct Watch {
    /// The key.
    key: String,
    /// All keys that begin so.
    #[arg(long)]
    prefix: bool,
    /// From this revision on; from now on, when 0.
    #[arg(long, default_value_t = 0)]
    rev: i64,
}

/// A request's two fields for a key, or for all keys that begin so.
pub fn span(key: &str, prefix: bool) -> (Bytes, Bytes) {
    let start = Bytes::copy_from_slice(key.as_bytes());
    if !prefix {
        return (start, Bytes::new());
    }
    let mut end = key.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return (start, end.into());
        }
    }
    // All keys there are; the least one is a zero byte.
    let start = if start.is_empty() {
        Bytes::from_static(&[0])
    } else {
        start
    };
    (start, Bytes::from_static(&[0]))
}

fn pairs(kvs: &[KeyValue]) -> String {
    let text = |kv: &KeyValue| {
        let (key, value) = (
            String::from_utf8_lossy(&kv.key),
            String::from_utf8_lossy(&kv.value),
        );
        format!("{key}\n{value}\n")
    };
    kvs.iter().map(text).collect()
}

pub async fn get(session: &Session, get: Get, format: Format) -> Result<()> {
    let (key, range_end) = span(&get.key, get.prefix);
    let request = session.request(RangeRequest {
        key,
        range_end,
        revision: get.rev,
        serializable: get.local,
        ..RangeRequest::default()
    });
    let mut client = KvClient::new(session.channel.clone()).max_decoding_message_size(usize::MAX);
    let answer = client.range(request).await.map_err(failed)?.into_inner();
    show(format, &answer, |answer| pairs(&answer.kvs))
}

pub async fn put(session: &Session, put: Put, format: Format) -> Result<()> {
    let lease = match &put.lease {
        None => 0,
        Some(lease) => i64::from_str_radix(lease, 16).map_err(|_| {
            Failure::usage(format!("{lease} is no lease"))
                .next("a lease is a hexadecimal number, as `etcdctl lease list` shows it")
        })?,
    };
    let request = session.request(PutRequest {
        key: put.key.into(),
        value: put.value.into(),
        lease,
        ..PutRequest::default()
    });
    let mut client = KvClient::new(session.channel.clone());
    let answer = client.put(request).await.map_err(failed)?.into_inner();
    show(format, &answer, |_| "OK\n".into())
}

pub async fn del(session: &Session, del: Del, format: Format) -> Result<()> {
    let (key, range_end) = span(&del.key, del.prefix);
    let request = session.request(DeleteRangeRequest {
        key,
        range_end,
        prev_kv: false,
    });
    let mut client = KvClient::new(session.channel.clone());
    let answer = client
        .delete_range(request)
        .await
        .map_err(failed)?
        .into_inner();
    show(format, &answer, |answer| format!("{}\n", answer.deleted))
}

fn change(event: &Event) -> String {
    let kind = match event.r#type() {
        EventType::Put => "PUT",
        EventType::Delete => "DELETE",
    };
    format!("{kind}\n{}", pairs(event.kv.as_slice()))
}

fn ended(why: &str) -> Failure {
    let what = format!("the member ended the watch: {why}");
    let next = "start it again with --rev, one past the last revision that was shown";
    Failure::new(Exit::Unavailable, "watch-ended", what).next(next)
}

/// Runs until the member ends the watch; an interrupt ends the process.
pub async fn watch(session: &Session, watch: Watch, format: Format) -> Result<()> {
    let (key, range_end) = span(&watch.key, watch.prefix);
    let create = WatchCreateRequest {
        key,
        range_end,
        start_revision: watch.rev,
        ..WatchCreateRequest::default()
    };
    let request = WatchRequest {
        request_union: Some(RequestUnion::CreateRequest(create)),
    };
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(request).await?;
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut client =
        WatchClient::new(session.channel.clone()).max_decoding_message_size(usize::MAX);
    let answers = client
        .watch(session.request(requests))
        .await
        .map_err(failed)?;
    let mut answers = answers.into_inner();
    while let Some(answer) = answers.message().await.map_err(failed)? {
        if answer.canceled {
            return Err(ended(&answer.cancel_reason).into());
        }
        show_next(format, &answer, |answer| {
            answer.events.iter().map(change).collect()
        })?;
    }
    drop(sender);
    Err(ended("it closed the connection").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_where_its_last_byte_grows() {
        assert_eq!(span("a", false), ("a".into(), "".into()));
        assert_eq!(span("a/", true), ("a/".into(), "a0".into()));
        assert_eq!(span("", true), ("\0".into(), "\0".into()));
    }
}
