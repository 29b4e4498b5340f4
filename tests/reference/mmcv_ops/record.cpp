// mmcv's operators on the CPU, see record.py. Functions of csrc/pytorch are bound as in
// csrc/pytorch/pybind.cpp. Operators that have CUDA kernels only run those, from
// csrc/common/cuda, as C++ in a single thread.
#include <torch/extension.h>

#include "carafe_naive_cuda_kernel.cuh"
#include "deform_roi_pool_cuda_kernel.cuh"
#include "masked_conv2d_cuda_kernel.cuh"
#include "ms_deform_attn_cuda_kernel.cuh"
#include "sync_bn_cuda_kernel.cuh"

using at::Tensor;

// ------------------------------------------------------------ with a CPU form

void deform_conv_forward(Tensor input, Tensor weight, Tensor offset,
                         Tensor output, Tensor columns, Tensor ones, int kW,
                         int kH, int dW, int dH, int padW, int padH,
                         int dilationW, int dilationH, int group,
                         int deformable_group, int im2col_step);
void deform_conv_backward_input(Tensor input, Tensor offset, Tensor gradOutput,
                                Tensor gradInput, Tensor gradOffset,
                                Tensor weight, Tensor columns, int kW, int kH,
                                int dW, int dH, int padW, int padH,
                                int dilationW, int dilationH, int group,
                                int deformable_group, int im2col_step);
void deform_conv_backward_parameters(Tensor input, Tensor offset,
                                     Tensor gradOutput, Tensor gradWeight,
                                     Tensor columns, Tensor ones, int kW,
                                     int kH, int dW, int dH, int padW, int padH,
                                     int dilationW, int dilationH, int group,
                                     int deformable_group, float scale,
                                     int im2col_step);
void modulated_deform_conv_forward(
    Tensor input, Tensor weight, Tensor bias, Tensor ones, Tensor offset,
    Tensor mask, Tensor output, Tensor columns, int kernel_h, int kernel_w,
    const int stride_h, const int stride_w, const int pad_h, const int pad_w,
    const int dilation_h, const int dilation_w, const int group,
    const int deformable_group, const bool with_bias);
void modulated_deform_conv_backward(
    Tensor input, Tensor weight, Tensor bias, Tensor ones, Tensor offset,
    Tensor mask, Tensor columns, Tensor grad_input, Tensor grad_weight,
    Tensor grad_bias, Tensor grad_offset, Tensor grad_mask, Tensor grad_output,
    int kernel_h, int kernel_w, int stride_h, int stride_w, int pad_h,
    int pad_w, int dilation_h, int dilation_w, int group, int deformable_group,
    const bool with_bias);
Tensor softnms(Tensor boxes, Tensor scores, Tensor dets, float iou_threshold,
               float sigma, float min_score, int method, int offset);
std::vector<std::vector<int>> nms_match(Tensor dets, float iou_threshold);
void psamask_forward(const Tensor input, Tensor output, const int psa_type,
                     const int num_, const int h_feature, const int w_feature,
                     const int h_mask, const int w_mask, const int half_h_mask,
                     const int half_w_mask);
void psamask_backward(Tensor grad_output, const Tensor grad_input,
                      const int psa_type, const int num_, const int h_feature,
                      const int w_feature, const int h_mask, const int w_mask,
                      const int half_h_mask, const int half_w_mask);
void roi_align_forward(Tensor input, Tensor rois, Tensor output,
                       Tensor argmax_y, Tensor argmax_x, int aligned_height,
                       int aligned_width, float spatial_scale,
                       int sampling_ratio, int pool_mode, bool aligned);
void roi_align_backward(Tensor grad_output, Tensor rois, Tensor argmax_y,
                        Tensor argmax_x, Tensor grad_input, int aligned_height,
                        int aligned_width, float spatial_scale,
                        int sampling_ratio, int pool_mode, bool aligned);

// ---------------------------------------------------- CUDA kernels in float64

static double* d(const Tensor& x) { return x.data_ptr<double>(); }
static int64_t* l(const Tensor& x) { return x.data_ptr<int64_t>(); }
static float* f(const Tensor& x) { return x.data_ptr<float>(); }

void carafe_forward(Tensor features, Tensor masks, Tensor rfeatures, Tensor routput,
                    Tensor rmasks, Tensor output, int kernel_size, int group_size,
                    int scale_factor) {
  rfeatures.copy_(features);
  carafe_naive_forward_cuda_kernel<double>(
      output.numel(), d(features), d(masks), d(output), kernel_size, group_size,
      scale_factor, output.size(1), output.size(2), output.size(3));
}

void carafe_backward(Tensor top_grad, Tensor rfeatures, Tensor masks, Tensor rtop_grad,
                     Tensor rbottom_grad_hs, Tensor rbottom_grad, Tensor rmask_grad,
                     Tensor bottom_grad, Tensor mask_grad, int kernel_size,
                     int group_size, int scale_factor) {
  carafe_naive_backward_cuda_kernel<double>(
      top_grad.numel(), d(top_grad), d(rfeatures), d(masks), d(bottom_grad),
      d(mask_grad), kernel_size, group_size, scale_factor, top_grad.size(1),
      top_grad.size(2), top_grad.size(3));
}

void deform_roi_pool_forward(Tensor input, Tensor rois, Tensor offset, Tensor output,
                             int pooled_height, int pooled_width, float spatial_scale,
                             int sampling_ratio, float gamma) {
  deform_roi_pool_forward_cuda_kernel<double>(
      output.numel(), d(input), d(rois), offset.numel() ? d(offset) : NULL, d(output),
      pooled_height, pooled_width, spatial_scale, sampling_ratio, gamma, input.size(1),
      input.size(2), input.size(3));
}

void deform_roi_pool_backward(Tensor grad_output, Tensor input, Tensor rois,
                              Tensor offset, Tensor grad_input, Tensor grad_offset,
                              int pooled_height, int pooled_width, float spatial_scale,
                              int sampling_ratio, float gamma) {
  deform_roi_pool_backward_cuda_kernel<double>(
      grad_output.numel(), d(grad_output), d(input), d(rois),
      offset.numel() ? d(offset) : NULL, d(grad_input), d(grad_offset), pooled_height,
      pooled_width, spatial_scale, sampling_ratio, gamma, input.size(1), input.size(2),
      input.size(3));
}

void masked_im2col_forward(Tensor im, Tensor mask_h_idx, Tensor mask_w_idx, Tensor col,
                           int kernel_h, int kernel_w, int pad_h, int pad_w) {
  MaskedIm2colForward<double>(mask_h_idx.size(0) * im.size(1), d(im), im.size(2),
                              im.size(3), kernel_h, kernel_w, pad_h, pad_w,
                              l(mask_h_idx), l(mask_w_idx), mask_h_idx.size(0), d(col));
}

void masked_col2im_forward(Tensor col, Tensor mask_h_idx, Tensor mask_w_idx, Tensor im,
                           int height, int width, int channels) {
  MaskedCol2imForward<double>(mask_h_idx.size(0) * channels, d(col), height, width,
                              channels, l(mask_h_idx), l(mask_w_idx),
                              mask_h_idx.size(0), d(im));
}

Tensor ms_deform_attn_forward(Tensor value, Tensor value_spatial_shapes,
                              Tensor value_level_start_index, Tensor sampling_locations,
                              Tensor attention_weights, int im2col_step) {
  int batch = value.size(0), keys = value.size(1), heads = value.size(2),
      channels = value.size(3), queries = sampling_locations.size(1),
      levels = sampling_locations.size(3), points = sampling_locations.size(4);
  Tensor output = at::zeros({batch, queries, heads * channels}, value.options());
  ms_deformable_im2col_gpu_kernel<double>(
      output.numel(), d(value), l(value_spatial_shapes), l(value_level_start_index),
      d(sampling_locations), d(attention_weights), batch, keys, heads, channels, levels,
      queries, points, d(output));
  return output;
}

void ms_deform_attn_backward(Tensor value, Tensor value_spatial_shapes,
                             Tensor value_level_start_index, Tensor sampling_locations,
                             Tensor attention_weights, Tensor grad_output,
                             Tensor grad_value, Tensor grad_sampling_loc,
                             Tensor grad_attn_weight, int im2col_step) {
  ms_deformable_col2im_gpu_kernel_gm<double>(
      grad_output.numel(), d(grad_output), d(value), l(value_spatial_shapes),
      l(value_level_start_index), d(sampling_locations), d(attention_weights),
      value.size(0), value.size(1), value.size(2), value.size(3),
      sampling_locations.size(3), sampling_locations.size(1),
      sampling_locations.size(4), d(grad_value), d(grad_sampling_loc),
      d(grad_attn_weight));
}

// MMSyncBN is in float32; a block per channel

void sync_bn_forward_mean(Tensor input, Tensor mean) {
  for (blockIdx.x = 0; blockIdx.x < input.size(1); ++blockIdx.x)
    sync_bn_forward_mean_cuda_kernel<float>(f(input), f(mean), input.size(0),
                                            input.size(1), input.size(2));
  blockIdx.x = 0;
}

void sync_bn_forward_var(Tensor input, Tensor mean, Tensor var) {
  for (blockIdx.x = 0; blockIdx.x < input.size(1); ++blockIdx.x)
    sync_bn_forward_var_cuda_kernel<float>(f(input), f(mean), f(var), input.size(0),
                                           input.size(1), input.size(2));
  blockIdx.x = 0;
}

void sync_bn_forward_output(Tensor input, Tensor mean, Tensor var, Tensor weight,
                            Tensor bias, Tensor running_mean, Tensor running_var,
                            Tensor norm, Tensor std, Tensor output, float eps,
                            float momentum, int group_size) {
  for (blockIdx.x = 0; blockIdx.x < input.size(1); ++blockIdx.x)
    sync_bn_forward_output_cuda_kernel<float>(
        f(input), f(mean), f(var), f(running_mean), f(running_var), f(weight), f(bias),
        f(norm), f(std), f(output), input.size(0), input.size(1), input.size(2), eps,
        momentum, group_size);
  blockIdx.x = 0;
}

void sync_bn_backward_param(Tensor grad_output, Tensor norm, Tensor grad_weight,
                            Tensor grad_bias) {
  for (blockIdx.x = 0; blockIdx.x < norm.size(1); ++blockIdx.x)
    sync_bn_backward_param_cuda_kernel<float>(f(grad_output), f(norm), f(grad_weight),
                                              f(grad_bias), norm.size(0), norm.size(1),
                                              norm.size(2));
  blockIdx.x = 0;
}

void sync_bn_backward_data(Tensor grad_output, Tensor weight, Tensor grad_weight,
                           Tensor grad_bias, Tensor norm, Tensor std,
                           Tensor grad_input) {
  sync_bn_backward_data_cuda_kernel<float>(
      norm.numel(), f(grad_output), f(weight), f(grad_weight), f(grad_bias), f(norm),
      f(std), f(grad_input), norm.size(0), norm.size(1), norm.size(2));
}

// ---------------------------------------------------------------------- Python

#define A py::arg

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("deform_conv_forward", &deform_conv_forward, A("input"), A("weight"),
        A("offset"), A("output"), A("columns"), A("ones"), A("kW"), A("kH"), A("dW"),
        A("dH"), A("padW"), A("padH"), A("dilationW"), A("dilationH"), A("group"),
        A("deformable_group"), A("im2col_step"));
  m.def("deform_conv_backward_input", &deform_conv_backward_input, A("input"),
        A("offset"), A("gradOutput"), A("gradInput"), A("gradOffset"), A("weight"),
        A("columns"), A("kW"), A("kH"), A("dW"), A("dH"), A("padW"), A("padH"),
        A("dilationW"), A("dilationH"), A("group"), A("deformable_group"),
        A("im2col_step"));
  m.def("deform_conv_backward_parameters", &deform_conv_backward_parameters, A("input"),
        A("offset"), A("gradOutput"), A("gradWeight"), A("columns"), A("ones"), A("kW"),
        A("kH"), A("dW"), A("dH"), A("padW"), A("padH"), A("dilationW"), A("dilationH"),
        A("group"), A("deformable_group"), A("scale"), A("im2col_step"));
  m.def("modulated_deform_conv_forward", &modulated_deform_conv_forward, A("input"),
        A("weight"), A("bias"), A("ones"), A("offset"), A("mask"), A("output"),
        A("columns"), A("kernel_h"), A("kernel_w"), A("stride_h"), A("stride_w"),
        A("pad_h"), A("pad_w"), A("dilation_h"), A("dilation_w"), A("group"),
        A("deformable_group"), A("with_bias"));
  m.def("modulated_deform_conv_backward", &modulated_deform_conv_backward, A("input"),
        A("weight"), A("bias"), A("ones"), A("offset"), A("mask"), A("columns"),
        A("grad_input"), A("grad_weight"), A("grad_bias"), A("grad_offset"),
        A("grad_mask"), A("grad_output"), A("kernel_h"), A("kernel_w"), A("stride_h"),
        A("stride_w"), A("pad_h"), A("pad_w"), A("dilation_h"), A("dilation_w"),
        A("group"), A("deformable_group"), A("with_bias"));
  m.def("softnms", &softnms, A("boxes"), A("scores"), A("dets"), A("iou_threshold"),
        A("sigma"), A("min_score"), A("method"), A("offset"));
  m.def("nms_match", &nms_match, A("dets"), A("iou_threshold"));
  m.def("psamask_forward", &psamask_forward, A("input"), A("output"), A("psa_type"),
        A("num_"), A("h_feature"), A("w_feature"), A("h_mask"), A("w_mask"),
        A("half_h_mask"), A("half_w_mask"));
  m.def("psamask_backward", &psamask_backward, A("grad_output"), A("grad_input"),
        A("psa_type"), A("num_"), A("h_feature"), A("w_feature"), A("h_mask"),
        A("w_mask"), A("half_h_mask"), A("half_w_mask"));
  m.def("roi_align_forward", &roi_align_forward, A("input"), A("rois"), A("output"),
        A("argmax_y"), A("argmax_x"), A("aligned_height"), A("aligned_width"),
        A("spatial_scale"), A("sampling_ratio"), A("pool_mode"), A("aligned"));
  m.def("roi_align_backward", &roi_align_backward, A("grad_output"), A("rois"),
        A("argmax_y"), A("argmax_x"), A("grad_input"), A("aligned_height"),
        A("aligned_width"), A("spatial_scale"), A("sampling_ratio"), A("pool_mode"),
        A("aligned"));
  m.def("carafe_forward", &carafe_forward, A("features"), A("masks"), A("rfeatures"),
        A("routput"), A("rmasks"), A("output"), A("kernel_size"), A("group_size"),
        A("scale_factor"));
  m.def("carafe_backward", &carafe_backward, A("top_grad"), A("rfeatures"), A("masks"),
        A("rtop_grad"), A("rbottom_grad_hs"), A("rbottom_grad"), A("rmask_grad"),
        A("bottom_grad"), A("mask_grad"), A("kernel_size"), A("group_size"),
        A("scale_factor"));
  m.def("deform_roi_pool_forward", &deform_roi_pool_forward, A("input"), A("rois"),
        A("offset"), A("output"), A("pooled_height"), A("pooled_width"),
        A("spatial_scale"), A("sampling_ratio"), A("gamma"));
  m.def("deform_roi_pool_backward", &deform_roi_pool_backward, A("grad_output"),
        A("input"), A("rois"), A("offset"), A("grad_input"), A("grad_offset"),
        A("pooled_height"), A("pooled_width"), A("spatial_scale"), A("sampling_ratio"),
        A("gamma"));
  m.def("masked_im2col_forward", &masked_im2col_forward, A("im"), A("mask_h_idx"),
        A("mask_w_idx"), A("col"), A("kernel_h"), A("kernel_w"), A("pad_h"),
        A("pad_w"));
  m.def("masked_col2im_forward", &masked_col2im_forward, A("col"), A("mask_h_idx"),
        A("mask_w_idx"), A("im"), A("height"), A("width"), A("channels"));
  m.def("ms_deform_attn_forward", &ms_deform_attn_forward, A("value"),
        A("value_spatial_shapes"), A("value_level_start_index"),
        A("sampling_locations"), A("attention_weights"), A("im2col_step"));
  m.def("ms_deform_attn_backward", &ms_deform_attn_backward, A("value"),
        A("value_spatial_shapes"), A("value_level_start_index"),
        A("sampling_locations"), A("attention_weights"), A("grad_output"),
        A("grad_value"), A("grad_sampling_loc"), A("grad_attn_weight"),
        A("im2col_step"));
  m.def("sync_bn_forward_mean", &sync_bn_forward_mean);
  m.def("sync_bn_forward_var", &sync_bn_forward_var);
  m.def("sync_bn_forward_output", &sync_bn_forward_output, A("input"), A("mean"),
        A("var"), A("weight"), A("bias"), A("running_mean"), A("running_var"),
        A("norm"), A("std"), A("output"), A("eps"), A("momentum"), A("group_size"));
  m.def("sync_bn_backward_param", &sync_bn_backward_param);
  m.def("sync_bn_backward_data", &sync_bn_backward_data);
}
