"""Why a mount is sick, found without touching it. Evidence first, then findings."""
