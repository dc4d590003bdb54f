//! What somebody else may have put where a page should be. Whatever it is, it is a miss, and it is counted.

use super::*;

/// Of the envelope, as `src/redis/envelope.rs` describes it.
const HEADER: usize = 40;

/// A page of version 1, as `src/http/wire.rs` describes it.
struct Forged {
    key: Vec<u8>,
    status: u16,
    headers: Vec<(&'static str, &'static str)>,
    body: &'static [u8],
}

impl Forged {
    fn bytes(&self) -> Vec<u8> {
        let mut out = vec![1, 0];
        out.extend(self.status.to_be_bytes());
        out.extend([0; 8]);
        out.extend(u32::try_from(self.key.len()).unwrap().to_be_bytes());
        out.extend(&self.key);
        out.extend([0; 2]);
        out.extend(u16::try_from(self.headers.len()).unwrap().to_be_bytes());
        for (name, value) in &self.headers {
            out.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
            out.extend(name.bytes());
            out.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
            out.extend(value.bytes());
        }
        out.extend(u32::try_from(self.body.len()).unwrap().to_be_bytes());
        out.extend(self.body);
        out
    }
}

/// A page that one instance published, and the means to put something else in its place.
struct Scene {
    server: Server,
    handler: Handler,
    name: String,
    value: Vec<u8>,
}

impl Scene {
    async fn new() -> Self {
        let server = Server::start();
        let handler = Handler::counting("max-age=1000");
        let a = Instance::with_defaults(&server, &handler).await;
        a.get("/page").await;
        a.published(1).await;
        let name = values(&server).remove(0);
        let value = redis::cmd("GET").arg(&name).query(&mut connection(&server)).unwrap();
        Self { server, handler, name, value }
    }

    fn put(&self, value: &[u8]) {
        let mut set = redis::cmd("SET");
        set.arg(&self.name).arg(value).arg("KEEPTTL").exec(&mut connection(&self.server)).unwrap();
    }

    /// The envelope with another payload in it.
    fn wrap(&self, payload: &[u8]) -> Vec<u8> {
        let mut value = self.value[..HEADER].to_vec();
        value[28..32].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
        value.extend(payload);
        value
    }

    /// The page's key, from the payload: behind version, flags, status and age.
    fn key(&self) -> Vec<u8> {
        let at = HEADER + 12;
        let length = u32::from_be_bytes(self.value[at..at + 4].try_into().unwrap());
        self.value[at + 4..at + 4 + usize::try_from(length).unwrap()].to_vec()
    }

    /// What an instance makes of it that has seen nothing yet, and whether it counted it.
    async fn seen(&self) -> (String, bool) {
        let b = Instance::with_defaults(&self.server, &self.handler).await;
        let answer = b.get("/page").await;
        (answer, b.tier.stats().malformed > 0)
    }

    async fn is_a_miss(&self, what: &str, value: &[u8]) {
        self.put(value);
        let runs = self.handler.runs.get();
        let (answer, counted) = self.seen().await;
        assert_eq!((answer, counted), (format!("run {}", runs + 1), true), "{what}");
    }
}

#[tokio::test]
async fn a_forged_page_is_served_only_if_it_is_sound() {
    let scene = Scene::new().await;
    let fresh = [("cache-control", "max-age=1000"), ("x-forged", "1")];
    let forged = |headers: &[(&'static str, &'static str)]| {
        let headers = [&fresh[..], headers].concat();
        Forged { key: scene.key(), status: 200, headers, body: b"forged" }
    };
    // That it can be forged at all shows that the others are refused for what is wrong with them.
    scene.put(&scene.wrap(&forged(&[]).bytes()));
    assert_eq!(scene.seen().await, ("forged".into(), false));
    for headers in [
        &[("set-cookie", "id=1")][..],
        &[("cache-control", "private")],
        &[("cache-control", "no-store")],
        &[("vary", "*")],
        &[("vary", "user-agent")],
        &[("www-authenticate", "Basic")],
        &[("content-length", "7")],
        &[("content-range", "bytes 0-5/6")],
    ] {
        let bytes = forged(headers).bytes();
        scene.is_a_miss(&format!("{headers:?}"), &scene.wrap(&bytes)).await;
    }
    for status in [100, 206, 304] {
        let bytes = Forged { status, ..forged(&[]) }.bytes();
        scene.is_a_miss(&status.to_string(), &scene.wrap(&bytes)).await;
    }
    let mut other_key = scene.key();
    *other_key.last_mut().unwrap() ^= 1;
    let bytes = Forged { key: other_key, ..forged(&[]) }.bytes();
    scene.is_a_miss("another key", &scene.wrap(&bytes)).await;
}

#[tokio::test]
async fn the_page_of_another_url_is_never_served_in_its_place() {
    let scene = Scene::new().await;
    let a = Instance::with_defaults(&scene.server, &scene.handler).await;
    assert_eq!(a.get("/other").await, "run 2");
    a.published(1).await;
    let other = values(&scene.server).into_iter().find(|name| *name != scene.name).unwrap();
    let value: Vec<u8> = redis::cmd("GET").arg(other).query(&mut connection(&scene.server)).unwrap();
    scene.is_a_miss("the other page", &value).await;
}

#[tokio::test]
async fn what_is_cut_damaged_oversized_or_foreign_is_a_miss() {
    let scene = Scene::new().await;
    let payload = scene.value[HEADER..].to_vec();
    scene.is_a_miss("cut, and the envelope does not know", &scene.wrap(&payload[..payload.len() - 1])).await;
    scene.is_a_miss("cut", &scene.value[..scene.value.len() - 1]).await;
    scene.is_a_miss("longer", &scene.wrap(&[&payload[..], b"x"].concat())).await;
    scene.is_a_miss("empty", &scene.wrap(&[])).await;
    scene.is_a_miss("of another version", &scene.wrap(&[&[2], &payload[1..]].concat())).await;
    let huge = vec![1; 2 * 1024 * 1024];
    scene.is_a_miss("oversized", &scene.wrap(&huge)).await;
    let mut codec = scene.value.clone();
    codec[3] = 1;
    scene.is_a_miss("of another codec", &codec).await;
    let mut lies = payload.clone();
    lies[12..16].copy_from_slice(&[0xff; 4]);
    scene.is_a_miss("a length that is a lie", &scene.wrap(&lies)).await;
}
