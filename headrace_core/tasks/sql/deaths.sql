-- name: report_death
-- Whoever watches the leases takes over those of the dead in its next round. A process that lives says so with its next sign
-- of life, which clears the note.
update headrace_core.consumers set died_at = now() where worker = %(worker)s and died_at is null;
