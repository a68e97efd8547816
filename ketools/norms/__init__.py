"""How the weights grow: Frobenius norms of edited and unedited matrices."""
