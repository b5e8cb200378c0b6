//! Counts the requests of a store, attempt by attempt.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_smithy_runtime_api::client::interceptors::context::{
    BeforeDeserializationInterceptorContextMut, BeforeTransmitInterceptorContextRef,
};
use aws_smithy_runtime_api::client::interceptors::{Intercept, dyn_dispatch_hint};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;

use crate::{BoxError, Requests};

/// Some stores (SeaweedFS) send the MD5 of a customer key twice, which the SDK rejects as
/// unreadable. The header is not needed.
const MD5_HEADER: &str = "x-amz-server-side-encryption-customer-key-md5";

/// Kind of a request, as stores bill it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Put,
    Get,
    Head,
    List,
    Delete,
}

/// Number of requests of each [`Kind`].
#[derive(Debug, Default)]
pub(super) struct Counts([AtomicU64; 5]);

impl Counts {
    pub(super) fn requests(&self) -> Requests {
        let of = |kind: Kind| self.0[kind as usize].load(Ordering::Relaxed);
        Requests {
            put: of(Kind::Put),
            get: of(Kind::Get),
            head: of(Kind::Head),
            list: of(Kind::List),
            delete: of(Kind::Delete),
        }
    }
}

/// Counts each attempt of one request.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) counts: Arc<Counts>,
    pub(super) kind: Kind,
}

#[dyn_dispatch_hint]
impl Intercept for Sent {
    fn name(&self) -> &'static str {
        "Sent"
    }

    fn read_before_transmit(
        &self,
        _context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.counts.0[self.kind as usize].fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        context.response_mut().headers_mut().remove(MD5_HEADER);
        Ok(())
    }
}
