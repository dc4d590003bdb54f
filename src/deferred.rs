//! Destructors of values, put off until the thread that drops them holds no lock.
//!
//! What a store pushes out may be the last copy of a user's value, whose destructor may use the very cache it leaves.
//! A store drops when and where it likes, inside locks of its own and of the flights', so its entries hand their values
//! to [`dispose`], and whoever takes such a lock has [`hold_for`] put them off until it has been given back.
//!
//! Whoever drops them then has business of its own, which no panic of theirs may end.

use std::any::Any;
use std::cell::Cell;

use crate::quietly::quietly;
use crate::sync::thread_local;

struct Held {
    /// Scopes that are open on this thread.
    depth: usize,
    values: Vec<Box<dyn Any>>,
}

thread_local! {
    static HELD: Cell<Held> = const { Cell::new(Held::new()) };
}

impl Held {
    const fn new() -> Self {
        Self { depth: 0, values: Vec::new() }
    }
}

impl Default for Held {
    fn default() -> Self {
        Self::new()
    }
}

/// What `change` makes of this thread's state; `None` on a thread that is being torn down, which puts nothing off.
fn with<T>(change: impl FnOnce(&mut Held) -> T) -> Option<T> {
    let changed = |place: &Cell<Held>| {
        let mut held = place.take();
        let changed = change(&mut held);
        place.set(held);
        changed
    };
    HELD.try_with(changed).ok()
}

/// Puts destructors off until it is dropped. Of several on one thread the outermost counts.
#[must_use = "it ends when it is dropped"]
pub(crate) struct Scope(());

fn hold() -> Scope {
    with(|held| held.depth += 1);
    Scope(())
}

/// [`hold`], where there are values of this type whose destructors matter.
#[inline]
pub(crate) fn hold_for<V>() -> Option<Scope> {
    std::mem::needs_drop::<V>().then(hold)
}

impl Drop for Scope {
    fn drop(&mut self) {
        with(|held| held.depth = held.depth.saturating_sub(1));
        // One by one: a destructor may get here again.
        while let Some(value) = with(|held| if held.depth == 0 { held.values.pop() } else { None }).flatten()
        {
            quietly(|| drop(value));
        }
    }
}

/// Drops `value`, now or when this thread's outermost scope ends.
pub(crate) fn dispose<T: 'static>(value: T) {
    let mut value = Some(value);
    with(|held| {
        if held.depth > 0 {
            held.values.extend(value.take().map(|value| Box::new(value) as Box<dyn Any>));
        }
    });
    quietly(|| drop(value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn values_live_until_the_outermost_scope_ends() {
        let value = Arc::new(());
        let outer = hold();
        let inner = hold();
        dispose(Arc::clone(&value));
        drop(inner);
        dispose(Arc::clone(&value));
        assert_eq!(Arc::strong_count(&value), 3);
        drop(outer);
        assert_eq!(Arc::strong_count(&value), 1);
        dispose(Arc::clone(&value));
        assert_eq!(Arc::strong_count(&value), 1, "nothing puts it off");
    }

    #[test]
    fn a_destructor_that_panics_ends_nothing() {
        struct Bomb {
            _value: Arc<()>,
        }
        impl Drop for Bomb {
            fn drop(&mut self) {
                panic!("a destructor panics");
            }
        }
        let value = Arc::new(());
        let scope = hold();
        dispose(Arc::clone(&value));
        dispose(Bomb { _value: Arc::clone(&value) });
        dispose(Bomb { _value: Arc::clone(&value) });
        drop(scope);
        assert_eq!(Arc::strong_count(&value), 1, "the others go, too");
        dispose(Bomb { _value: Arc::clone(&value) });
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn a_destructor_may_dispose_of_more() {
        struct Chain(usize, Arc<()>);
        impl Drop for Chain {
            fn drop(&mut self) {
                let _scope = hold();
                if self.0 > 0 {
                    dispose(Self(self.0 - 1, Arc::clone(&self.1)));
                }
            }
        }
        let value = Arc::new(());
        let scope = hold();
        dispose(Chain(3, Arc::clone(&value)));
        assert_eq!(Arc::strong_count(&value), 2);
        drop(scope);
        assert_eq!(Arc::strong_count(&value), 1);
    }
}
