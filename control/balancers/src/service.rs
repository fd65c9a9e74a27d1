//! Load balancers as operators administer them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use control_kit::api::Caller;
use control_kit::api_error::ApiError;
use control_kit::audit;
use control_kit::page;
use fiberlb_api::v1;
use tokio::sync::{Mutex, MutexGuard};
use tonic::Code;

use crate::attach::needs_xdp;
use crate::driver::Shared;
use crate::error::{denied, faulty, invalid, no_such_balancer, not_applied, not_kept, unreachable};
use crate::model::Drain;
use crate::node::BalancerNode;
use crate::spec::{self, BackendKey, Balancer, BalancerKey, Fault, Hosts};
use crate::status;
use crate::store::{Kept, Store};
use crate::{diff, explain};

/// Who may do everything.
const ROOT: &str = "root";
/// The set of a document that names none.
const SET: &str = "default";
/// How long one host may be looked up.
const LOOK_UP_LIMIT: Duration = Duration::from_secs(5);

/// Serves `ultracloud.fiberlb.v1.LoadBalancers`. Clones are the same.
#[derive(Clone)]
pub struct BalancerService {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    /// Held by whoever changes documents or drains.
    keeper: Mutex<Keeper>,
}

struct Keeper {
    store: Store,
    hosts: Hosts,
}

impl std::fmt::Debug for BalancerService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BalancerService").finish_non_exhaustive()
    }
}

impl BalancerService {
    /// The service of a node, with what [`BalancerNode::start`] has read.
    pub fn new(node: &BalancerNode, store: Store, kept: Kept) -> BalancerService {
        let shared = Arc::clone(node.shared());
        let hosts = kept.hosts;
        let keeper = Mutex::new(Keeper { store, hosts });
        BalancerService {
            inner: Arc::new(Inner { shared, keeper }),
        }
    }

    /// Makes the balancers of a set be as a document says.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn apply(
        &self,
        caller: &Caller,
        request: v1::ApplyRequest,
    ) -> Result<v1::ApplyResponse, ApiError> {
        let service = self.clone();
        in_task(caller, |caller| async move {
            service.apply_now(&caller, request).await
        })
        .await
    }

    async fn apply_now(
        &self,
        caller: &Caller,
        request: v1::ApplyRequest,
    ) -> Result<v1::ApplyResponse, ApiError> {
        let set = if request.set.is_empty() {
            SET
        } else {
            &request.set
        };
        if &*caller.principal.tenant != ROOT {
            return Err(denied(format!("set {set}"), "root"));
        }
        let owner = owner_of(caller, &request.owner)?;
        let mut keeper = self.inner.keeper.lock().await;
        let hosts = look_up(&request.balancers).await?;
        let (gone, before, others) = self.of_set(&owner, set);
        let parsed = spec::parse((&owner, set), &request.balancers, &hosts, others.iter());
        let parsed = parsed
            .and_then(|parsed| self.within_tc(parsed))
            .map_err(|faults| faulty(&faults))?;
        let changes = diff::changes(before.iter(), parsed.iter());
        if request.dry_run {
            return Ok(v1::ApplyResponse {
                changes,
                generation: 0,
                dry_run: true,
            });
        }
        let generation = self
            .change(&mut keeper, &gone, parsed, others, hosts)
            .await?;
        drop(keeper);
        audit::log_done(
            caller,
            "load-balancers-apply",
            format!("set {set} of {owner}"),
        );
        self.applied(caller, generation).await?;
        Ok(v1::ApplyResponse {
            changes,
            generation,
            dry_run: false,
        })
    }

    /// Refuses what needs XDP while an interface is attached by traffic control: its packets would be dropped.
    fn within_tc(&self, balancers: Vec<Balancer>) -> Result<Vec<Balancer>, Vec<Fault>> {
        let Some(interface) = self.inner.shared.attachments.by_tc() else {
            return Ok(balancers);
        };
        let mut faults = Vec::new();
        for (b, balancer) in balancers.iter().enumerate() {
            for (l, listener) in balancer.listeners.iter().enumerate() {
                if let Some(what) = needs_xdp(listener) {
                    faults.push(Fault {
                        path: format!("balancers[{b}].listeners[{l}]"),
                        what: format!(
                            "listener {} of {}: {what} needs XDP, and interface {interface} is attached by tc",
                            listener.name, balancer.key
                        ),
                    });
                }
            }
        }
        if faults.is_empty() {
            Ok(balancers)
        } else {
            Err(faults)
        }
    }

    /// The balancers of a set: their keys and themselves; and all others.
    fn of_set(
        &self,
        owner: &str,
        set: &str,
    ) -> (BTreeSet<BalancerKey>, Vec<Balancer>, Vec<Balancer>) {
        let model = self.inner.shared.model();
        let of_set = |balancer: &Balancer| balancer.key.owner == owner && balancer.set == set;
        let (of_it, others): (Vec<_>, Vec<_>) = model.balancers().cloned().partition(of_set);
        let keys = of_it.iter().map(|balancer| balancer.key.clone()).collect();
        (keys, of_it, others)
    }

    /// Keeps documents durably, then puts them into the model; the generation that has them.
    async fn change(
        &self,
        keeper: &mut MutexGuard<'_, Keeper>,
        gone: &BTreeSet<BalancerKey>,
        new: Vec<Balancer>,
        others: Vec<Balancer>,
        new_hosts: Hosts,
    ) -> Result<u32, ApiError> {
        let shared = &self.inner.shared;
        let all = others
            .iter()
            .chain(&new)
            .map(|balancer| balancer.written.clone());
        let all: Vec<v1::LoadBalancer> = all.collect();
        let named: BTreeSet<String> = spec::host_names(&all).into_iter().map(|(_, h)| h).collect();
        let mut hosts = keeper.hosts.clone();
        hosts.extend(new_hosts);
        hosts.retain(|host, _| named.contains(host));
        let kept = {
            // Drains of backends that stay; the model forgets the others, too.
            let mut next = shared.model().clone();
            next.replace(gone, new.clone());
            Kept::new(hosts.clone(), all, next.drains())
        };
        keeper
            .store
            .write(&kept)
            .await
            .map_err(|error| not_kept(&error))?;
        keeper.hosts = hosts;
        let generation = {
            let mut model = shared.model();
            model.replace(gone, new);
            model.commit(shared.now_ms())
        };
        shared.changed.notify_one();
        Ok(generation)
    }

    /// Waits until the tables have a generation.
    async fn applied(&self, caller: &Caller, generation: u32) -> Result<(), ApiError> {
        let mut applied = self.inner.shared.tables.applied();
        let reached = async {
            let there = applied.wait_for(|applied| applied.generation >= generation);
            there.await.map(drop)
        };
        // Somewhat before the caller's own deadline, to say what is the matter.
        let deadline = caller.deadline - Duration::from_millis(500);
        if let Ok(Ok(())) = tokio::time::timeout_at(deadline, reached).await {
            return Ok(());
        }
        let error = self.inner.shared.tables.applied().borrow().error.clone();
        Err(not_applied(generation, error))
    }

    /// Removes a balancer.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn delete(
        &self,
        caller: &Caller,
        request: v1::DeleteLoadBalancerRequest,
    ) -> Result<v1::DeleteLoadBalancerResponse, ApiError> {
        let service = self.clone();
        in_task(caller, |caller| async move {
            let key = key_of(&caller, &request.owner, &request.name)?;
            if &*caller.principal.tenant != ROOT {
                return Err(denied(key.to_string(), "root"));
            }
            let mut keeper = service.inner.keeper.lock().await;
            service.found(&key)?;
            let gone = BTreeSet::from([key.clone()]);
            let others: Vec<Balancer> = {
                let model = service.inner.shared.model();
                model
                    .balancers()
                    .filter(|b| b.key != key)
                    .cloned()
                    .collect()
            };
            let hosts = Hosts::new();
            let changed = service.change(&mut keeper, &gone, Vec::new(), others, hosts);
            let generation = changed.await?;
            drop(keeper);
            audit::log_done(&caller, "load-balancer-delete", key.to_string());
            service.applied(&caller, generation).await?;
            Ok(v1::DeleteLoadBalancerResponse { generation })
        })
        .await
    }

    fn found(&self, key: &BalancerKey) -> Result<Balancer, ApiError> {
        let found = self.inner.shared.model().balancer(key).cloned();
        found.ok_or_else(|| no_such_balancer(key))
    }

    /// One balancer.
    ///
    /// # Errors
    /// What the user is told.
    pub fn get(
        &self,
        caller: &Caller,
        request: &v1::GetLoadBalancerRequest,
    ) -> Result<v1::LoadBalancer, ApiError> {
        let key = key_of(caller, &request.owner, &request.name)?;
        self.found(&key).map(|found| found.written)
    }

    /// Balancers by owner and name.
    ///
    /// # Errors
    /// What the user is told.
    pub fn list(
        &self,
        caller: &Caller,
        request: &v1::ListLoadBalancersRequest,
    ) -> Result<v1::ListLoadBalancersResponse, ApiError> {
        let owner = owner_of(caller, &request.owner)?;
        let all = all_owners(caller, request.all_owners)?;
        let limit = page::limit(request.limit)?;
        let after = page::key(&request.after)?;
        let place = |balancer: &Balancer| format!("{}/{}", balancer.key.owner, balancer.key.name);
        let model = self.inner.shared.model();
        let mut fitting: Vec<&Balancer> = model
            .balancers()
            .filter(|balancer| all || balancer.key.owner == owner)
            .filter(|balancer| after.as_ref().is_none_or(|after| place(balancer) > *after))
            .collect();
        fitting.sort_by_key(|balancer| place(balancer));
        let more = fitting.len() > limit;
        fitting.truncate(limit);
        let last = fitting.last().filter(|_| more).map(|last| place(last));
        Ok(v1::ListLoadBalancersResponse {
            balancers: fitting
                .iter()
                .map(|balancer| balancer.written.clone())
                .collect(),
            next: page::token(last.as_deref()),
        })
    }

    /// Begins a drain.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn drain(
        &self,
        caller: &Caller,
        request: v1::DrainBackendRequest,
    ) -> Result<v1::BackendStatus, ApiError> {
        let service = self.clone();
        in_task(caller, |caller| async move {
            let key = key_of(&caller, &request.owner, &request.name)?;
            let wait_ms = u64::from(request.deadline_s) * 1000;
            let deadline = (wait_ms > 0).then(|| service.inner.shared.now_ms() + wait_ms);
            let drain = Drain {
                deadline_ms: deadline,
            };
            let drained = service.set_drain(&caller, &key, &request.backend, Some(drain));
            drained.await
        })
        .await
    }

    /// Takes a drain back.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn restore(
        &self,
        caller: &Caller,
        request: v1::RestoreBackendRequest,
    ) -> Result<v1::BackendStatus, ApiError> {
        let service = self.clone();
        in_task(caller, |caller| async move {
            let key = key_of(&caller, &request.owner, &request.name)?;
            service
                .set_drain(&caller, &key, &request.backend, None)
                .await
        })
        .await
    }

    async fn set_drain(
        &self,
        caller: &Caller,
        balancer: &BalancerKey,
        name: &str,
        drain: Option<Drain>,
    ) -> Result<v1::BackendStatus, ApiError> {
        let shared = &self.inner.shared;
        let keeper = self.inner.keeper.lock().await;
        self.found(balancer)?;
        let key = self.backend(balancer, name)?;
        let kept = {
            let mut next = shared.model().clone();
            next.set_drain(&key, drain);
            let all = next.balancers().map(|balancer| balancer.written.clone());
            Kept::new(keeper.hosts.clone(), all.collect(), next.drains())
        };
        keeper
            .store
            .write(&kept)
            .await
            .map_err(|error| not_kept(&error))?;
        let generation = {
            let mut model = shared.model();
            model.set_drain(&key, drain);
            model.commit(shared.now_ms())
        };
        shared.changed.notify_one();
        drop(keeper);
        let what = if drain.is_some() {
            "backend-drain"
        } else {
            "backend-restore"
        };
        audit::log_done(caller, what, key.to_string());
        self.applied(caller, generation).await?;
        status::of_backend(shared, &key).await
    }

    /// The one backend that a name means.
    fn backend(&self, balancer: &BalancerKey, name: &str) -> Result<BackendKey, ApiError> {
        let found = self.inner.shared.model().named(balancer, name);
        match <[BackendKey; 1]>::try_from(found) {
            Ok([one]) => Ok(one),
            Err(none) if none.is_empty() => {
                let what = format!("there is no backend {name}");
                Err(ApiError::new(Code::NotFound, "no-such-backend", what)
                    .object(balancer.to_string())
                    .next("see `ultractl lb status` for its backends"))
            }
            Err(several) => {
                let pools: Vec<String> = several.into_iter().map(|key| key.pool).collect();
                let what = format!("backend {name} is in several pools: {}", pools.join(", "));
                Err(invalid(&balancer.to_string(), what, "name it as POOL/NAME"))
            }
        }
    }

    /// What runs.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn status(
        &self,
        caller: &Caller,
        request: v1::GetStatusRequest,
    ) -> Result<v1::Status, ApiError> {
        let owner = owner_of(caller, &request.owner)?;
        let all = all_owners(caller, request.all_owners)?;
        if !request.name.is_empty() {
            self.found(&key_of(caller, &request.owner, &request.name)?)?;
        }
        let fits = |balancer: &Balancer| {
            (all || balancer.key.owner == owner)
                && (request.name.is_empty() || balancer.key.name == request.name)
        };
        status::of(&self.inner.shared, fits)
            .await
            .map_err(unreachable)
    }

    /// Where a packet goes.
    ///
    /// # Errors
    /// What the user is told.
    pub async fn explain(
        &self,
        caller: &Caller,
        request: v1::ExplainRequest,
    ) -> Result<v1::Explanation, ApiError> {
        let explained = explain::explain(&self.inner.shared, &request).await?;
        let of_caller = explained.owner.is_empty() || *explained.owner == *caller.principal.tenant;
        if !of_caller && &*caller.principal.tenant != ROOT {
            return Err(denied(
                format!("the VIP of {}", request.dst),
                "its owner and root",
            ));
        }
        Ok(explained)
    }

    /// The status of everything, for the node's own pages.
    pub(crate) async fn everything(&self) -> Option<(v1::Status, crate::tables::Seen)> {
        let status = status::of(&self.inner.shared, |_| true).await.ok()?;
        Some((status, self.inner.shared.tables.seen().await.ok()?))
    }
}

/// Looks up the hosts that documents name, each anew.
async fn look_up(balancers: &[v1::LoadBalancer]) -> Result<Hosts, ApiError> {
    let mut hosts = Hosts::new();
    let mut faults = Vec::new();
    for (path, host) in spec::host_names(balancers) {
        if hosts.contains_key(&host) {
            continue;
        }
        let found = tokio::time::timeout(LOOK_UP_LIMIT, tokio::net::lookup_host((&*host, 0)));
        let first: Result<Option<IpAddr>, String> = match found.await {
            Ok(Ok(mut found)) => Ok(found.next().map(|addr| addr.ip())),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("no answer in time".to_owned()),
        };
        match first {
            Ok(Some(addr)) => {
                hosts.insert(host, addr);
            }
            Ok(None) => faults.push((path, host, "it has no address".to_owned())),
            Err(why) => faults.push((path, host, why)),
        }
    }
    if faults.is_empty() {
        return Ok(hosts);
    }
    let faults: Vec<Fault> = faults
        .into_iter()
        .map(|(path, host, why)| Fault {
            path,
            what: format!("host {host} cannot be looked up: {why}"),
        })
        .collect();
    Err(faulty(&faults))
}

/// Whose balancers are meant, if the caller may ask for them.
fn owner_of(caller: &Caller, asked: &str) -> Result<String, ApiError> {
    let user = &*caller.principal.tenant;
    if asked.is_empty() || asked == user {
        return Ok(user.to_owned());
    }
    if user != ROOT {
        return Err(denied(
            format!("load balancers of {asked}"),
            "their owner and root",
        ));
    }
    Ok(asked.to_owned())
}

fn all_owners(caller: &Caller, asked: bool) -> Result<bool, ApiError> {
    if asked && &*caller.principal.tenant != ROOT {
        return Err(denied("load balancers of all owners".to_owned(), "root"));
    }
    Ok(asked)
}

fn key_of(caller: &Caller, owner: &str, name: &str) -> Result<BalancerKey, ApiError> {
    Ok(BalancerKey {
        owner: owner_of(caller, owner)?,
        name: name.to_owned(),
    })
}

/// Runs a change to its end, also when its caller goes away.
async fn in_task<R, F, Fut>(caller: &Caller, change: F) -> Result<R, ApiError>
where
    R: Send + 'static,
    F: FnOnce(Caller) -> Fut,
    Fut: Future<Output = Result<R, ApiError>> + Send + 'static,
{
    let changed = tokio::spawn(change(caller.clone())).await;
    changed.unwrap_or_else(|_| {
        let what = "the node is shutting down";
        Err(ApiError::new(Code::Unavailable, "shutting-down", what)
            .next("retry when /readyz answers 200 again"))
    })
}
