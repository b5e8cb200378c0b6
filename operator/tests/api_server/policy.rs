//! The admission policy of the chart, evaluated against SqliteBackups.

use std::time::Duration;

use api::SqliteBackup;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
};
use kube::{Api, Client, Error, Resource};

use crate::helm::{of_kind, rendered};

/// Objects that the chart installs beside an operator: the kind, the policy and its binding.
pub(crate) struct Policy {
    client: Client,
    objects: Vec<DynamicObject>,
}

impl Policy {
    /// Installs the objects.
    pub(crate) async fn install(client: &Client) -> Policy {
        let objects = rendered(&[]);
        let kinds = [
            "CustomResourceDefinition",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
        ];
        let objects = kinds.iter().flat_map(|kind| of_kind(&objects, kind));
        let objects = objects.map(|object| serde_json::from_value(object.clone()).unwrap());
        let policy = Policy {
            client: client.clone(),
            objects: objects.collect(),
        };
        let apply = PatchParams::apply("test").force();
        for object in &policy.objects {
            let name = object.metadata.name.as_deref().unwrap();
            let patch = Patch::Apply(object);
            policy
                .api(object)
                .patch(name, &apply, &patch)
                .await
                .unwrap();
        }
        policy
    }

    /// Creates these SqliteBackups, in order.
    pub(crate) async fn create_backups(&self, backups: &[SqliteBackup]) {
        for backup in backups {
            let api = self.backups(backup);
            let params = PostParams::default();
            // A new kind is served with a delay; until then it is unknown, or not ready.
            let mut tries = 0;
            loop {
                match api.create(&params, backup).await {
                    Ok(_) => break,
                    Err(Error::Api(s)) if [404, 429, 503].contains(&s.code) && tries < 500 => {
                        tries += 1
                    }
                    Err(other) => panic!("{other}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await; // bounded: limited tries
            }
        }
    }

    /// Removes the objects in reverse order. The kind stays, because other tests may have objects
    /// of it.
    pub(crate) async fn remove(&self, backups: &[SqliteBackup]) {
        let params = DeleteParams::default();
        for object in self.objects.iter().rev() {
            let name = object.metadata.name.as_deref().unwrap();
            if !name.ends_with(api::GROUP) {
                self.api(object).delete(name, &params).await.unwrap();
            }
        }
        for backup in backups {
            let name = backup.metadata.name.as_deref().unwrap();
            self.backups(backup).delete(name, &params).await.unwrap();
        }
    }

    fn backups(&self, backup: &SqliteBackup) -> Api<SqliteBackup> {
        let namespace = backup.meta().namespace.as_deref().unwrap();
        Api::namespaced(self.client.clone(), namespace)
    }

    fn api(&self, object: &DynamicObject) -> Api<DynamicObject> {
        let types = object.types.as_ref().unwrap();
        let kind = GroupVersionKind::try_from(types).unwrap();
        Api::all_with(self.client.clone(), &ApiResource::from_gvk(&kind))
    }
}
