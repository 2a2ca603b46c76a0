"""The base of models."""


class TemplateLM:
    """Encodes pairs as lm-eval's does, for texts that end without a space."""

    def loglikelihood(self, requests, disable_tqdm=False):
        """Return what the model says of each pair."""
        pairs = []
        for request in requests:
            context, continuation = request.args
            whole, before = self.tok_encode(context + continuation), self.tok_encode(context)
            pairs.append((request.args, before, whole[len(before) :]))
        return self._loglikelihood_tokens(pairs)
