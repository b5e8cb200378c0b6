//! Whether a store means what it says about conditions.

use crate::object::{Body, PutMeta, PutMode, Store};
use crate::{StoreError, StoreErrorKind};

/// Returns whether the store obeys [`PutMode::Create`], by trying.
///
/// Some S3 stores ignore the header without a word, and then nothing keeps two writers apart. So
/// ask once before you rely on it. Stores one small object below `probe/`, twice, and deletes it;
/// `nonce` keeps probes at the same time apart.
///
/// # Errors
/// Any error of the puts: it was not possible to find out. A probe that cannot be deleted is left
/// behind.
pub async fn obeys_conditions(store: &dyn Store, nonce: &str) -> Result<bool, StoreError> {
    let key = format!("probe/{nonce}");
    let body = || Body::from(&b"conditional put?"[..]);
    let meta = PutMeta::default();
    store.put(&key, body(), PutMode::Overwrite, &meta).await?;
    let second = store.put(&key, body(), PutMode::Create, &meta).await;
    // Who may not delete (object lock) may still write.
    let _ = store.delete(&[key]).await;
    match second {
        Ok(()) => Ok(false),
        Err(error) if error.kind() == StoreErrorKind::Exists => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fault, FaultPlan, Faulty, Memory};

    #[tokio::test]
    async fn a_store_that_could_not_be_asked_is_neither_good_nor_bad() {
        assert!(obeys_conditions(&Memory::new(), "a").await.unwrap());
        for call in 0..2 {
            let plan = FaultPlan::none().at(call, Fault::Fail(StoreErrorKind::Unreachable));
            assert!(
                obeys_conditions(&Faulty::new(Memory::new(), plan), "a")
                    .await
                    .is_err()
            );
        }
        let kept = FaultPlan::none().at(2, Fault::Fail(StoreErrorKind::Denied));
        assert!(
            obeys_conditions(&Faulty::new(Memory::new(), kept), "a")
                .await
                .unwrap()
        );
    }
}
