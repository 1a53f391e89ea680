"""Names under which dictionaries were published, and what their files do not say of them."""
