//! A request that can be sent to both servers: where an answer of theirs goes into it (the id of an
//! upload, a token), it holds a place for it.

use s3_wire::uri;

use crate::support::{Answer, Client, Payload, request};

/// What a request does, for rules and for telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    ListBuckets,
    CreateBucket,
    HeadBucket,
    DeleteBucket,
    Location,
    Put,
    Get,
    Head,
    Delete,
    DeleteMany,
    Copy,
    ListV1,
    ListV2,
    CreateUpload,
    Part,
    PartCopy,
    Complete,
    Abort,
    ListParts,
    ListUploads,
    Bad,
}

/// The value of a query parameter.
#[derive(Clone, Debug)]
pub enum Value {
    Text(String),
    /// The id that the server gave to the history's n-th upload.
    Upload(usize),
    /// The text of this element in the server's last answer.
    Last(&'static str),
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub op: Op,
    pub method: &'static str,
    pub bucket: String,
    /// Not encoded; empty for the bucket itself.
    pub key: String,
    pub query: Vec<(&'static str, Value)>,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub payload: Payload,
}

impl Plan {
    pub fn new(op: Op, method: &'static str, bucket: &str, key: &str) -> Plan {
        Plan {
            op,
            method,
            bucket: bucket.to_owned(),
            key: key.to_owned(),
            query: Vec::new(),
            headers: Vec::new(),
            body: Vec::new(),
            payload: Payload::Unsigned,
        }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Plan {
        self.query.push((name, Value::Text(value.into())));
        self
    }

    pub fn upload(mut self, slot: usize) -> Plan {
        self.query.push(("uploadId", Value::Upload(slot)));
        self
    }

    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Plan {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Plan {
        self.body = body.into();
        self
    }

    /// The text of a query parameter that is the same for both servers.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find_map(|(known, value)| match value {
            Value::Text(text) if *known == name => Some(&**text),
            _ => None,
        })
    }

    pub fn has(&self, name: &str) -> bool {
        self.headers.iter().any(|(known, _)| known == name)
    }

    pub fn value_of(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| &**value)
    }

    /// The upload that the request names.
    pub fn slot(&self) -> Option<usize> {
        self.query.iter().find_map(|(_, value)| match value {
            Value::Upload(slot) => Some(*slot),
            _ => None,
        })
    }

    fn path(&self) -> String {
        let text = if self.bucket.is_empty() {
            "/".to_owned()
        } else if self.key.is_empty() {
            format!("/{}", self.bucket)
        } else {
            format!("/{}/{}", self.bucket, self.key)
        };
        let mut path = Vec::new();
        uri::encode_path(&mut path, &text);
        String::from_utf8(path).unwrap()
    }
}

/// One of the two, and what it said so far.
pub struct Side {
    client: Client,
    uploads: Vec<String>,
    last: Option<Answer>,
}

impl Side {
    pub fn new(client: Client) -> Side {
        Side {
            client,
            uploads: Vec::new(),
            last: None,
        }
    }

    pub fn send(&mut self, plan: &Plan) -> &Answer {
        let path = plan.path();
        let query = self.query(plan);
        let mut sent = request(plan.method, &path)
            .query(&query)
            .body(&plan.body)
            .payload(plan.payload);
        for (name, value) in &plan.headers {
            sent = sent.header(name, value);
        }
        let answer = self.client.send(&sent);
        if plan.op == Op::CreateUpload {
            // A refused one has a number too, so that both sides count alike.
            let id = answer.all("UploadId").pop().unwrap_or_default();
            self.uploads.push(id);
        }
        self.last.insert(answer)
    }

    fn query(&self, plan: &Plan) -> String {
        let mut out = Vec::new();
        for (name, value) in &plan.query {
            if !out.is_empty() {
                out.push(b'&');
            }
            out.extend_from_slice(name.as_bytes());
            let text = match value {
                Value::Text(text) => text.clone(),
                Value::Upload(slot) => self.uploads[*slot].clone(),
                Value::Last(element) => {
                    let last = self.last.as_ref().map(|answer| answer.all(element));
                    last.and_then(|mut all| all.pop()).unwrap_or_default()
                }
            };
            out.push(b'=');
            uri::encode_query(&mut out, &text);
        }
        String::from_utf8(out).unwrap()
    }
}
