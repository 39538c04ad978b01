//! Docker, by its Engine API.

mod api;
mod machines;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::PathBuf,
    pin::Pin,
};

use anyhow::{Result, bail};
use bollard::{
    errors::Error,
    models::ContainerSummary,
    query_parameters::{EventsOptionsBuilder, ListNetworksOptionsBuilder},
};
use jiff::Timestamp;
use tokio_stream::{Stream, StreamExt as _};

use self::machines::{Labels, Network, ours};
use super::{
    Source,
    engine::{Engine, Listed, Machine},
};
use crate::driver::docker::DRIVER;

/// What may change which machines there are, what they are called, and where they are
/// found. Others, such as those of health checks, come by the second.
const EVENTS: [(&str, &[&str]); 2] = [
    ("type", &["container", "network"]),
    (
        "event",
        &["start", "die", "rename", "connect", "disconnect"],
    ),
];

/// Docker, while its daemon runs.
pub struct Docker {
    api: bollard::Docker,
    events: Pin<Box<dyn Stream<Item = Result<(), Error>> + Send>>,
    /// Labels of images by id, which never change.
    images: HashMap<String, Labels>,
    /// Network namespaces by container, for as long as it has these endpoints: a
    /// container that is started again has others.
    sandboxes: HashMap<String, (BTreeSet<String>, Option<PathBuf>)>,
}

impl Engine for Docker {
    const SOURCE: Source = Source::Docker;

    async fn open() -> Result<Self> {
        let api = api::open().await?;
        // They are asked for with the first look at them; what happens before is told
        // then.
        let since = Timestamp::now();
        let since = format!("{}.{:09}", since.as_second(), since.subsec_nanosecond());
        let filters = EVENTS.map(|(key, values)| (key, values.to_vec()));
        let options = EventsOptionsBuilder::new()
            .since(&since)
            .filters(&HashMap::from(filters))
            .build();
        let events = api.events(Some(options)).map(|event| event.map(drop));
        Ok(Docker {
            events: Box::pin(events),
            api,
            images: HashMap::new(),
            sandboxes: HashMap::new(),
        })
    }

    async fn machines(&mut self) -> Result<Listed> {
        let networks = networks(&self.api).await?;
        let containers = self.api.list_containers(None).await?;
        let mut machines: Vec<Machine> = Vec::with_capacity(containers.len());
        for container in &containers {
            if !machines::has_own_network(container) {
                continue;
            }
            let sandbox = match machines::has_link(container, &networks) {
                true => None,
                false => self.sandbox(container).await?,
            };
            let image = match ours(container) {
                true => self.image(container).await?,
                false => None,
            };
            machines.extend(machines::of(container, &networks, image, sandbox));
        }
        self.forget(&containers);
        // The daemon lists them by age.
        machines.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(machines.into())
    }

    async fn changed(&mut self) -> Result<()> {
        match self.events.next().await {
            Some(event) => Ok(event?),
            None => bail!("its daemon has ended"),
        }
    }
}

impl Docker {
    /// Labels that a container has got from its image; `None` when it cannot be found
    /// out.
    async fn image(&mut self, container: &ContainerSummary) -> Result<Option<&Labels>> {
        let Some(id) = &container.image_id else {
            return Ok(None);
        };
        if !self.images.contains_key(id) {
            let Some(image) = there(self.api.inspect_image(id).await)? else {
                return Ok(None);
            };
            let labels = image.config.and_then(|config| config.labels);
            self.images.insert(id.clone(), labels.unwrap_or_default());
        }
        Ok(self.images.get(id))
    }

    /// A container's network namespace; `None` when it has ended meanwhile.
    async fn sandbox(&mut self, container: &ContainerSummary) -> Result<Option<PathBuf>> {
        let Some(id) = &container.id else {
            return Ok(None);
        };
        let endpoints: BTreeSet<String> = machines::endpoints(container).collect();
        if let Some((known, path)) = self.sandboxes.get(id)
            && *known == endpoints
        {
            return Ok(path.clone());
        }
        let Some(found) = there(self.api.inspect_container(id, None).await)? else {
            return Ok(None);
        };
        let path = found
            .network_settings
            .and_then(|settings| settings.sandbox_key)
            .filter(|key| !key.is_empty())
            .map(PathBuf::from);
        self.sandboxes.insert(id.clone(), (endpoints, path.clone()));
        Ok(path)
    }

    /// Forgets what no container needs any more.
    fn forget(&mut self, containers: &[ContainerSummary]) {
        let ids = |id: fn(&ContainerSummary) -> Option<&String>| -> HashSet<&String> {
            containers.iter().filter_map(id).collect()
        };
        let (containers, images) = (
            ids(|container| container.id.as_ref()),
            ids(|container| container.image_id.as_ref()),
        );
        self.sandboxes.retain(|id, _| containers.contains(id));
        self.images.retain(|id, _| images.contains(id));
    }
}

/// Networks that our driver made, by id.
async fn networks(api: &bollard::Docker) -> Result<HashMap<String, Network>> {
    let options = ListNetworksOptionsBuilder::new()
        .filters(&HashMap::from([("driver", vec![DRIVER])]))
        .build();
    let listed = api.list_networks(Some(options)).await?;
    Ok(listed.into_iter().filter_map(Network::read).collect())
}

/// What was asked for, `None` where there is none.
fn there<T>(asked: Result<T, Error>) -> Result<Option<T>, Error> {
    match asked {
        Ok(value) => Ok(Some(value)),
        Err(Error::DockerResponseServerError {
            status_code: 404, ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}
