/* One convolution of LIBXSMM 1.17 for convolutions.py: forward pass, input gradient, weight gradient.
 *
 *     gcc -O2 -o libxsmm_convolution libxsmm_convolution.c -lxsmmext -lxsmm -lxsmmnoblas -lpthread -lrt -ldl -lm
 *
 * It reads lines "N C H W K R S stride padding seconds" and answers each with the shortest time of each pass [s] of
 * those that fit into the seconds.
 */
#include <libxsmm.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void check(libxsmm_dnn_err_t status) {
  if (status != LIBXSMM_DNN_SUCCESS) {
    fprintf(stderr, "libxsmm: %s\n", libxsmm_dnn_get_error(status));
    exit(1);
  }
}

/* Give a handle memory for one of its tensors, filled with small numbers. */
static void bind(libxsmm_dnn_layer *handle, libxsmm_dnn_tensor_type type) {
  libxsmm_dnn_err_t status;
  libxsmm_dnn_tensor_datalayout *layout = libxsmm_dnn_create_tensor_datalayout(handle, type, &status);
  check(status);
  size_t bytes = libxsmm_dnn_get_tensor_size(layout, &status);
  check(status);
  float *memory = libxsmm_aligned_malloc(bytes, 2097152);
  for (size_t i = 0; i < bytes / sizeof(float); ++i) memory[i] = (float)(i * 2654435761u % 1000) / 1000 - 0.5f;
  libxsmm_dnn_tensor *tensor = libxsmm_dnn_link_tensor(layout, memory, &status);
  check(status);
  check(libxsmm_dnn_bind_tensor(handle, tensor, type));
}

int main(void) {
  int N, C, H, W, K, R, S, stride, padding;
  double seconds;
  const libxsmm_dnn_compute_kind passes[] = {LIBXSMM_DNN_COMPUTE_KIND_FWD, LIBXSMM_DNN_COMPUTE_KIND_BWD,
                                             LIBXSMM_DNN_COMPUTE_KIND_UPD};
  const libxsmm_dnn_tensor_type tensors[] = {
      LIBXSMM_DNN_REGULAR_INPUT,  LIBXSMM_DNN_GRADIENT_INPUT,  LIBXSMM_DNN_REGULAR_OUTPUT, LIBXSMM_DNN_GRADIENT_OUTPUT,
      LIBXSMM_DNN_REGULAR_FILTER, LIBXSMM_DNN_GRADIENT_FILTER};
  while (scanf("%d %d %d %d %d %d %d %d %d %lf", &N, &C, &H, &W, &K, &R, &S, &stride, &padding, &seconds) == 10) {
    libxsmm_dnn_err_t status;
    libxsmm_dnn_conv_desc desc = {0};
    desc.N = N, desc.C = C, desc.H = H, desc.W = W, desc.K = K, desc.R = R, desc.S = S;
    desc.u = desc.v = stride;
    desc.pad_h = desc.pad_w = padding;
    desc.threads = 1;
    desc.algo = LIBXSMM_DNN_CONV_ALGO_DIRECT;
    desc.buffer_format = desc.filter_format = LIBXSMM_DNN_TENSOR_FORMAT_LIBXSMM;
    desc.fuse_ops = LIBXSMM_DNN_CONV_FUSE_NONE;
    desc.options = LIBXSMM_DNN_CONV_OPTION_OVERWRITE;
    desc.datatype_in = desc.datatype_out = LIBXSMM_DNN_DATATYPE_F32;
    libxsmm_dnn_layer *handle = libxsmm_dnn_create_conv_layer(desc, &status);
    check(status);
    for (int i = 0; i < 6; ++i) bind(handle, tensors[i]);
    size_t scratch = libxsmm_dnn_get_scratch_size(handle, LIBXSMM_DNN_COMPUTE_KIND_ALL, &status);
    check(status);
    check(libxsmm_dnn_bind_scratch(handle, LIBXSMM_DNN_COMPUTE_KIND_ALL, libxsmm_aligned_malloc(scratch + 64, 2097152)));
    for (int pass = 0; pass < 3; ++pass) {
      double best = 1e9, begin = now();
      int runs = 0;
      while (runs < 3 || now() - begin < seconds) {
        double start = now();
        check(libxsmm_dnn_execute_st(handle, passes[pass], 0, 0));
        if (runs++ && now() - start < best) best = now() - start;
      }
      printf("%.9f ", best);
    }
    printf("\n");
    fflush(stdout);
    check(libxsmm_dnn_destroy_conv_layer(handle));
  }
  return 0;
}
