//! On whose behalf a call is made.

use std::fmt;
use std::sync::Arc;

use control_kit::request_id::RequestId;
use shards::TenantId;
use tokio::time::Instant;

/// Who a call belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tenant {
    id: Arc<str>,
    number: TenantId,
}

impl Tenant {
    /// `id` is the tenant's identity, by which calls in flight are bounded. `number` is what the
    /// shards know it by: the CPU that its calls use is counted with its other work there.
    pub fn new(id: impl Into<Arc<str>>, number: TenantId) -> Tenant {
        Tenant {
            id: id.into(),
            number,
        }
    }

    /// The identity.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The number on the shards.
    pub fn number(&self) -> TenantId {
        self.number
    }

    pub(crate) fn shared_id(&self) -> &Arc<str> {
        &self.id
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tenant {}", self.id)
    }
}

/// What every call carries.
#[derive(Clone, Debug)]
pub struct CallContext {
    /// Whose call it is.
    pub tenant: Tenant,
    /// The request that it serves.
    pub request: RequestId,
    /// When the call ends with an error, at the latest.
    pub deadline: Instant,
}
