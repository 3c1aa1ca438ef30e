/* Runs a header of `pmsm.export_c` on whole numbers alone: the specification by example.
 *
 * Build: cc -std=c99 -include network.h run_network.c -lm
 * Run: ./a.out TIMESTEPS < samples; reads float32 samples, channels outermost, and prints for each sample and
 * timestep one line: the outputs so far, added up. Times pmsm_output_unit / t they are the read-out.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct pmsm_operation operation;

static int size(const operation *op) { return op->channels * op->height * op->width; }

static int32_t floor_divide(int32_t a, int32_t b) { return a / b - (a % b < 0); }

static int32_t at_least(int32_t a, int32_t b) { return a > b ? a : b; }

static int32_t at_most(int32_t a, int32_t b) { return a < b ? a : b; }

static void *zeros(int count, size_t each) {
    void *memory = calloc((size_t)count, each);
    if (memory == NULL) exit(EXIT_FAILURE);
    return memory;
}

static void conv(const operation *op, const operation *from, const int32_t *x, int32_t *y) {
    int into = from->channels / op->groups, of_group = op->channels / op->groups, o, i, j, c, a, b;
    for (o = 0; o < op->channels; o++)
        for (i = 0; i < op->height; i++)
            for (j = 0; j < op->width; j++) {
                int32_t sum = op->bias[o];
                for (c = 0; c < into; c++)
                    for (a = 0; a < op->kernel[0]; a++)
                        for (b = 0; b < op->kernel[1]; b++) {
                            int row = i * op->stride[0] + a * op->dilation[0] - op->padding[0];
                            int column = j * op->stride[1] + b * op->dilation[1] - op->padding[1];
                            int channel = o / of_group * into + c;
                            if (row >= 0 && row < from->height && column >= 0 && column < from->width)
                                sum += op->weight[((o * into + c) * op->kernel[0] + a) * op->kernel[1] + b] *
                                       x[(channel * from->height + row) * from->width + column];
                        }
                y[(o * op->height + i) * op->width + j] = sum;
            }
}

static void linear(const operation *op, const operation *from, const int32_t *x, int32_t *y) {
    int o, i, inputs = size(from);
    for (o = 0; o < op->channels; o++) {
        y[o] = op->bias[o];
        for (i = 0; i < inputs; i++) y[o] += op->weight[o * inputs + i] * x[i];
    }
}

static void pool(const operation *op, const operation *from, const int32_t *x, int32_t *y) {
    int c, i, j, a, b;
    for (c = 0; c < op->channels; c++)
        for (i = 0; i < op->height; i++)
            for (j = 0; j < op->width; j++) {
                int32_t found = op->kind == PMSM_MAXPOOL ? INT32_MIN : 0;
                for (a = 0; a < op->kernel[0]; a++)
                    for (b = 0; b < op->kernel[1]; b++) {
                        int row = i * op->stride[0] + a - op->padding[0];
                        int column = j * op->stride[1] + b - op->padding[1];
                        int32_t value;
                        if (row < 0 || row >= from->height || column < 0 || column >= from->width) continue;
                        value = x[(c * from->height + row) * from->width + column];
                        found = op->kind == PMSM_MAXPOOL ? at_least(found, value) : found + value;
                    }
                y[(c * op->height + i) * op->width + j] = found;
            }
}

/* The largest of the sums so far, less what was sent before; state holds both, one behind the other. */
static void maxpool(const operation *op, const operation *from, const int32_t *x, int32_t *y, int32_t *state) {
    int i, inputs = size(from);
    for (i = 0; i < inputs; i++) state[i] += x[i];
    pool(op, from, state, y);
    for (i = 0; i < size(op); i++) {
        int32_t found = y[i];
        y[i] -= state[inputs + i];
        state[inputs + i] = found;
    }
}

/* State: the potentials, then the bounds on the next counts. */
static void neuron(const operation *op, const int32_t *x, int32_t *y, int32_t *state, int t) {
    int i, count = size(op), step = op->side > 0 ? op->quant_min : op->quant_max;
    for (i = 0; i < count; i++) {
        int c = i / (op->height * op->width);
        int32_t threshold = op->threshold[c], *v = state + i, *bound = state + count + i, k;
        if (t == 0) {
            *v = op->start[c];
            *bound = step;
        }
        *v += x[i];
        k = at_most(at_least(floor_divide(*v + threshold / 2, threshold), op->least), op->most);
        if (op->side) k = op->side > 0 ? at_least(k, *bound) : at_most(k, *bound);
        *bound += step - k;
        *v -= k * threshold;
        y[i] = k;
    }
}

static void move(const operation *op, int32_t *const *values, int32_t *y) {
    int i, part;
    for (i = 0; i < size(op); i++) {
        int32_t index = op->index[i];
        y[i] = 0;
        for (part = 0; index >= 0 && part < op->input_count; part++) {
            int inside = size(&pmsm_operations[op->inputs[part]]);
            if (index < inside) {
                y[i] = values[op->inputs[part]][index];
                break;
            }
            index -= inside;
        }
    }
}

static void sum(const operation *op, int32_t *const *values, int32_t *y) {
    int i, part;
    for (i = 0; i < size(op); i++) {
        int c = i / (op->height * op->width);
        y[i] = 0;
        for (part = 0; part < op->input_count; part++)
            y[i] += op->worth[part * op->channels + c] * values[op->inputs[part]][i];
    }
}

static void step(int32_t *const *values, int32_t *const *states, int t) {
    int n;
    for (n = 1; n < PMSM_OPERATIONS; n++) {
        const operation *op = &pmsm_operations[n], *from = &pmsm_operations[op->inputs[0]];
        const int32_t *x = values[op->inputs[0]];
        switch (op->kind) {
        case PMSM_CONV: conv(op, from, x, values[n]); break;
        case PMSM_LINEAR: linear(op, from, x, values[n]); break;
        case PMSM_SUMPOOL: pool(op, from, x, values[n]); break;
        case PMSM_MAXPOOL: maxpool(op, from, x, values[n], states[n]); break;
        case PMSM_NEURON: neuron(op, x, values[n], states[n], t); break;
        case PMSM_MOVE: move(op, values, values[n]); break;
        case PMSM_SUM: sum(op, values, values[n]); break;
        case PMSM_INPUT: break;
        }
    }
}

int main(int argc, char **argv) {
    int timesteps = argc > 1 ? atoi(argv[1]) : 1, inputs = size(&pmsm_operations[0]), n, i, t;
    int outputs = size(&pmsm_operations[PMSM_OPERATIONS - 1]);
    int32_t *values[PMSM_OPERATIONS], *states[PMSM_OPERATIONS];
    float *sample = zeros(inputs, sizeof *sample);
    int64_t *sums = zeros(outputs, sizeof *sums);
    for (n = 0; n < PMSM_OPERATIONS; n++) {
        const operation *op = &pmsm_operations[n];
        int held = 2 * size(op) + (op->kind == PMSM_MAXPOOL ? size(&pmsm_operations[op->inputs[0]]) : 0);
        values[n] = zeros(size(op), sizeof **values);
        states[n] = zeros(held, sizeof **states);
    }
    while (fread(sample, sizeof *sample, (size_t)inputs, stdin) == (size_t)inputs) {
        for (i = 0; i < inputs; i++) {
            float whole = floorf(sample[i] / pmsm_input_step + 0.5f);
            values[0][i] = (int32_t)fminf(fmaxf(whole, -127.0f), 127.0f);
        }
        for (n = 0; n < PMSM_OPERATIONS; n++)
            if (pmsm_operations[n].kind == PMSM_MAXPOOL) {
                int held = size(&pmsm_operations[n]) + size(&pmsm_operations[pmsm_operations[n].inputs[0]]);
                for (i = 0; i < held; i++) states[n][i] = 0;
            }
        for (i = 0; i < outputs; i++) sums[i] = 0;
        for (t = 0; t < timesteps; t++) {
            step(values, states, t);
            for (i = 0; i < outputs; i++) {
                sums[i] += values[PMSM_OPERATIONS - 1][i];
                printf("%lld%c", (long long)sums[i], i + 1 < outputs ? ' ' : '\n');
            }
        }
    }
    for (n = 0; n < PMSM_OPERATIONS; n++) {
        free(values[n]);
        free(states[n]);
    }
    free(sample);
    free(sums);
    return EXIT_SUCCESS;
}
